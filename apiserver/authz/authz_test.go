package authz

import (
	"context"
	"errors"
	"testing"
)

func TestFirstOpinionCounts(t *testing.T) {
	says := func(d Decision, reason string, err error) Authorizer {
		return Func(func(context.Context, *Attributes) (Decision, string, error) { return d, reason, err })
	}
	broken := errors.New("broken")
	for _, test := range []struct {
		any    Any
		want   Decision
		reason string
		err    string
	}{
		{Any{}, NoOpinion, "", ""},
		{Any{says(NoOpinion, "a", nil), says(NoOpinion, "b", nil)}, NoOpinion, "a\nb", ""},
		{Any{says(NoOpinion, "a", nil), says(Allowed, "b", nil), says(Denied, "c", nil)}, Allowed, "b", ""},
		{Any{says(NoOpinion, "a", nil), says(Denied, "b", nil), says(Allowed, "c", nil)}, Denied, "b", ""},
		{Any{says(NoOpinion, "", broken), says(Allowed, "b", nil)}, Allowed, "b", ""},
		{Any{says(NoOpinion, "", broken), says(NoOpinion, "b", errors.New("too"))}, NoOpinion, "b", "[broken, too]"},
		{Any{says(Denied, "", broken), says(Allowed, "b", nil)}, Denied, "", "broken"},
		{Any{Any{says(NoOpinion, "a", nil)}, Any{says(Denied, "b", nil)}, says(Allowed, "", nil)}, Denied, "b", ""},
	} {
		d, reason, err := test.any.Authorize(context.Background(), &Attributes{})
		text := ""
		if err != nil {
			text = err.Error()
		}
		if d != test.want || reason != test.reason || text != test.err {
			t.Errorf("got %v %q %q, want %v %q %q", d, reason, text, test.want, test.reason, test.err)
		}
	}
}

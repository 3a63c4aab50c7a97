package selector

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

// TestMatcher: it says the same as the selector.
func TestMatcher(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, text := range []string{"", "a=1", "a==1,b=2", "a in (1)", "a in (1,2),b in (2)", "a!=1", "!a", "a", "a notin (1)", "a>1,b=1", "a=", "b in (1),a!=2"} {
		sel, err := labels.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		matches := Matcher(sel)
		for range 200 {
			l := map[string]string{}
			for _, k := range []string{"a", "b", "c"} {
				if n := r.IntN(5); n < 3 {
					l[k] = fmt.Sprint(n)
				} else if n == 3 {
					l[k] = ""
				}
			}
			if matches(l) != sel.Matches(labels.Set(l)) {
				t.Errorf("%q says %v of %v", text, matches(l), l)
			}
		}
	}
	if matches := Matcher(labels.Nothing()); matches(map[string]string{"a": "1"}) || matches(nil) {
		t.Error("nothing matches something")
	}
}

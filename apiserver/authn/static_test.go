package authn

import (
	"slices"
	"strings"
	"testing"
)

func TestStatic(t *testing.T) {
	s, err := ParseStatic([]byte("one,ann,u1\ntwo, bob, u2, \"dev,ops\"\n,nobody,u0\none,eve,u3\n"))
	if err != nil {
		t.Fatal(err)
	}
	a := &Authenticator{Others: []Verifier{s}, Audiences: []string{"api"}}
	for token, want := range map[string]string{"one": "eve u3 [system:authenticated]", "two": "bob u2 [dev ops system:authenticated]"} {
		u, audiences, err := a.Token(t.Context(), token, nil)
		if got := u.Name + " " + u.UID + " [" + strings.Join(u.Groups, " ") + "]"; err != nil || got != want || !slices.Equal(audiences, []string{"api"}) {
			t.Errorf("%s: %s %v %v, want %s", token, got, audiences, err, want)
		}
	}
	for _, token := range []string{"three", "", "ann", "tw"} {
		if u, _, err := a.Token(t.Context(), token, nil); err == nil {
			t.Errorf("%q is %s", token, u.Name)
		}
	}
	if _, _, err := a.Token(t.Context(), "one", []string{"other"}); err == nil {
		t.Error("a token of the API server is good for others")
	}
}

func TestStaticIsRefused(t *testing.T) {
	_, err := ParseStatic([]byte("a,b,c\nsecret,ann\n"))
	if err == nil || err.Error() != "line 2: must have at least 3 columns (token, user name, user uid), found 2" {
		t.Error(err)
	}
	if _, err := ParseStatic([]byte("secret,\"ann")); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

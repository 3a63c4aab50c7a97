package aggregate

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"coracle.dev/coracle/client"
)

// flunders are objects of another server, of which one is held by a finalizer.
type flunders struct {
	mu     sync.Mutex
	names  []string
	asked  []string
	refuse bool
}

func (f *flunders) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	f.asked = append(f.asked, r.Header.Get("X-Remote-User")+" "+r.Method+" "+r.URL.Path)
	const all = "/apis/ext.example.com/v1/namespaces/shop/flunders"
	name, one := strings.CutPrefix(r.URL.Path, all+"/")
	switch {
	case f.refuse:
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","status":"Failure","message":"no","reason":"Forbidden","code":403}`)
	case r.Method == http.MethodGet && r.URL.Path == all:
		var items []string
		for _, n := range f.names {
			finalizer := ""
			if n == "held" {
				finalizer = `,"finalizers":["x/y"],"deletionTimestamp":"2026-01-01T00:00:00Z"`
			}
			items = append(items, fmt.Sprintf(`{"metadata":{"name":%q%s}}`, n, finalizer))
		}
		fmt.Fprintf(w, `{"kind":"FlunderList","items":[%s]}`, strings.Join(items, ","))
	case r.Method == http.MethodDelete && strings.Contains(string(body), `"propagationPolicy":"Background"`) && (one || r.URL.Path == all):
		var left []string
		for _, n := range f.names {
			if n == "held" || one && n != name {
				left = append(left, n)
			}
		}
		f.names = left
		fmt.Fprint(w, "{}")
	default:
		http.Error(w, "unexpected "+string(body), http.StatusBadRequest)
	}
}

func TestEmpty(t *testing.T) {
	as := client.ServiceAccountUser("kube-system", "namespace-controller", "")
	const who = "system:serviceaccount:kube-system:namespace-controller"
	const all = "/apis/ext.example.com/v1/namespaces/shop/flunders"
	for verbs, want := range map[string]string{
		`"get","list"`:                       "",
		`"delete"`:                           "",
		`"list","delete","deletecollection"`: who + " DELETE " + all + ";" + who + " GET " + all,
		`"list","delete"`:                    who + " GET " + all + ";" + who + " DELETE " + all + "/a;" + who + " DELETE " + all + "/b;" + who + " GET " + all,
	} {
		e, f := newExtension(t), &flunders{names: []string{"a", "held", "b"}}
		e.handler, e.verbs = f.serve, verbs
		a, _ := setup(t, e)
		s := e.apiService(true)
		if a.Any() {
			t.Error("there is a server before there is one")
		}
		a.Set(s)
		if _, err := a.Empty(t.Context(), as, "shop"); err != nil || len(f.asked) > 0 {
			t.Errorf("asked before its kinds are known: %q %v", f.asked, err)
		}
		if err := a.Look(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		left, err := a.Empty(t.Context(), as, "shop")
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(f.asked, ";"); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", verbs, got, want)
		}
		if want != "" && (left.Resources["flunders.ext.example.com"] != 1 || left.Finalizers["x/y"] != 1) {
			t.Errorf("%s: %+v", verbs, left)
		}
		f.refuse = true
		if _, err := a.Empty(t.Context(), as, "shop"); want != "" && (err == nil || err.Error() != "no") || want == "" && err != nil {
			t.Errorf("%s: %v", verbs, err)
		}
		a.Set(e.apiService(false))
		f.asked = nil
		if _, err := a.Empty(t.Context(), as, "shop"); err != nil || len(f.asked) > 0 || len(a.Unavailable()) != 1 {
			t.Errorf("asked while it is not available: %q %v", f.asked, err)
		}
	}
}

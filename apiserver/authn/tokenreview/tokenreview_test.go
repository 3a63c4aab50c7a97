package tokenreview

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"coracle.dev/coracle/client"
)

// judge is a token webhook on loopback.
type judge struct {
	*httptest.Server
	file string

	mu     sync.Mutex // guards all below
	asked  []string
	answer string // the status, as JSON
}

func startJudge(t *testing.T) *judge {
	j := &judge{}
	j.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		j.mu.Lock()
		defer j.mu.Unlock()
		var in struct {
			Kind, APIVersion string
			Spec             json.RawMessage
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		j.asked = append(j.asked, in.APIVersion+" "+string(in.Spec))
		if j.answer == "" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, `{"kind": %q, "apiVersion": %q, "status": %s}`, in.Kind, in.APIVersion, j.answer)
	}))
	t.Cleanup(j.Close)
	j.file = filepath.Join(t.TempDir(), "hook.yaml")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a}}], clusters: [{name: a, cluster: {server: "%s"}}]}`, j.URL)
	if err := os.WriteFile(j.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return j
}

func (j *judge) says(status string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.answer = status
}

// questions are those since the last call.
func (j *judge) questions() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := j.asked
	j.asked = nil
	return all
}

func TestReview(t *testing.T) {
	const ann = `"authenticated": true, "user": {"username": "ann", "uid": "7", "groups": ["crew"], "extra": {"team": ["blue"]}}`
	user := client.User{Name: "ann", UID: "7", Groups: []string{"crew"}, Extra: map[string][]string{"team": {"blue"}}}
	for _, version := range []string{"v1", "v1beta1"} {
		j := startJudge(t)
		w, err := Open(Config{File: j.file, Version: version, Audiences: []string{"api"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			status    string
			want      []string
			ok        bool
			audiences []string
			err       string
		}{
			{"{" + ann + "}", []string{"api"}, true, []string{"api"}, ""},
			{"{" + ann + "}", []string{"other"}, false, nil, ""},
			{"{" + ann + `, "audiences": ["other", "more"]}`, []string{"other", "api"}, true, []string{"other"}, ""},
			{"{" + ann + `, "audiences": ["other"]}`, []string{"api"}, false, nil, ""},
			{`{"authenticated": false}`, []string{"api"}, false, nil, ""},
			{`{"authenticated": false, "error": "too old"}`, []string{"api"}, false, nil, "token webhook: too old"},
			{``, []string{"api"}, false, nil, "token webhook: "},
			{`nonsense`, []string{"api"}, false, nil, "token webhook: "},
		} {
			j.says(test.status)
			u, audiences, ok, err := w.Review(context.Background(), "abc", test.want)
			if ok != test.ok || len(audiences) != len(test.audiences) || ok && (!reflect.DeepEqual(u, user) || !reflect.DeepEqual(audiences, test.audiences)) {
				t.Errorf("%s for %v: %+v %v %v", test.status, test.want, u, audiences, ok)
			}
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.HasPrefix(err.Error(), test.err)) || err != nil && strings.Contains(err.Error(), "abc") {
				t.Errorf("%s: %v, want %q", test.status, err, test.err)
			}
		}
		if got := j.questions()[0]; got != `authentication.k8s.io/`+version+` {"token":"abc","audiences":["api"]}` {
			t.Errorf("asked %s", got)
		}
	}
}

func TestHowLongAnswersAreGood(t *testing.T) {
	j := startJudge(t)
	now := clocktesting.NewFakeClock(time.Unix(1700000000, 0))
	w, err := Open(Config{File: j.file, Version: "v1", TTL: time.Minute, Audiences: []string{"api"}, Clock: now})
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		wait          time.Duration
		token, status string
		want          string
		asked         int
	}{
		{0, "a", `{"authenticated": true, "user": {"username": "ann"}}`, "api", 1},
		{30 * time.Second, "a", `{}`, "api", 0},
		{0, "a", `{}`, "other", 1},
		{0, "b", `{}`, "api", 1},
		{0, "b", `{"authenticated": true}`, "api", 0},
		{31 * time.Second, "a", `{"error": "gone"}`, "api", 1},
		{0, "a", `{"error": "gone"}`, "api", 1},
	} {
		now.Step(step.wait)
		j.says(step.status)
		w.Review(context.Background(), step.token, []string{step.want}) //nolint:errcheck // what is asked counts
		if got := len(j.questions()); got != step.asked {
			t.Errorf("step %d: %d questions, want %d", i, got, step.asked)
		}
	}
}

func TestWhatIsWrong(t *testing.T) {
	if _, err := Open(Config{File: "/nowhere", Version: "v2"}); err == nil || !strings.Contains(err.Error(), `unsupported authentication webhook version "v2"`) {
		t.Error(err)
	}
	if _, err := Open(Config{File: "/nowhere", Version: "v1"}); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Error(err)
	}
}

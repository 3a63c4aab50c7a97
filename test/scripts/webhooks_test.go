package scripts

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
	reviewv1 "k8s.io/api/admission/v1"
)

// serveWebhooks is the command webhooks NAME: it serves webhooks over HTTPS until the script ends (those of admission, and for tokens and
// rights: see judge), is an OpenID Connect issuer too (see issuer), and sets NAME_URL to their
// address and NAME_CA to what clientConfig.caBundle holds. A request to URL/x is answered with the file x.json, which is the
// response (its patch written out), and noted in the file NAME.log: path, operation, resource, name, user, and whether it is a dry run.
func serveWebhooks(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: webhooks NAME")
	}
	h := &webhooks{dir: ts.MkAbs("."), log: ts.MkAbs(args[0] + ".log")}
	ts.Check(os.WriteFile(h.log, nil, 0o644))
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	ts.Defer(s.Close)
	h.issuer.start(ts, args[0], s.URL)
	ts.Setenv(args[0]+"_URL", s.URL)
	ts.Setenv(args[0]+"_PEM", strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})), "\n", `\n`)) // for YAML in quotes
	ts.Setenv(args[0]+"_CA", base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
}

// webhooks answers with files.
type webhooks struct {
	dir, log string
	issuer   issuer
	mu       sync.Mutex // guards the log
}

func (h *webhooks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.issuer.serve(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || h.judge(w, body) {
		return
	}
	review := &reviewv1.AdmissionReview{}
	if err := json.Unmarshal(body, review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q := review.Request
	resource := q.RequestResource.Resource
	if q.RequestSubResource != "" {
		resource += "/" + q.RequestSubResource
	}
	if err := h.note(fmt.Sprintf("%s %s %s %s %s dry=%v %s\n", r.URL.Path, q.Operation, resource, q.Name, q.UserInfo.Username, *q.DryRun, q.Kind.Kind)); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	data, err := os.ReadFile(filepath.Join(h.dir, filepath.Base(strings.TrimPrefix(r.URL.Path, "/"))+".json"))
	if err != nil {
		http.Error(w, "no such webhook", http.StatusNotFound)
		return
	}
	response := map[string]any{}
	if err := json.Unmarshal(data, &response); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	response["uid"] = q.UID
	if patch, ok := response["patch"]; ok {
		text, _ := json.Marshal(patch)
		response["patch"], response["patchType"] = text, "JSONPatch"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": review.APIVersion, "kind": review.Kind, "response": response})
}

func (h *webhooks) note(line string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f, err := os.OpenFile(h.log, os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(line)
	return err
}

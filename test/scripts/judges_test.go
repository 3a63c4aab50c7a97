package scripts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/rogpeppe/go-internal/testscript"
)

// judge answers TokenReviews by the file tokens.json (token to status) and SubjectAccessReviews by rights.json ("user verb resource"
// or "user verb /path" to status; what is not there gets no opinion), and notes each. Where the file "down" exists it fails.
func (h *webhooks) judge(w http.ResponseWriter, body []byte) bool {
	var in map[string]json.RawMessage
	var kind string
	if json.Unmarshal(body, &in) != nil || json.Unmarshal(in["kind"], &kind) != nil {
		return false
	}
	var key, file, note string
	switch kind {
	case "TokenReview":
		var spec struct {
			Token     string
			Audiences []string
		}
		_ = json.Unmarshal(in["spec"], &spec)
		key, file, note = spec.Token, "tokens.json", fmt.Sprintf("token %s for %s", spec.Token, strings.Join(spec.Audiences, " "))
	case "SubjectAccessReview":
		var spec struct {
			User                  string
			ResourceAttributes    struct{ Verb, Resource string }
			NonResourceAttributes struct{ Verb, Path string }
		}
		_ = json.Unmarshal(in["spec"], &spec)
		key = strings.Join([]string{spec.User, spec.ResourceAttributes.Verb + spec.NonResourceAttributes.Verb, spec.ResourceAttributes.Resource + spec.NonResourceAttributes.Path}, " ")
		file, note = "rights.json", "may "+key
	default:
		return false
	}
	if err := h.note(note + "\n"); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return true
	}
	if _, err := os.Stat(filepath.Join(h.dir, "down")); err == nil {
		http.Error(w, "down", http.StatusForbidden)
		return true
	}
	statuses := map[string]json.RawMessage{}
	data, err := os.ReadFile(filepath.Join(h.dir, file))
	if err == nil {
		err = json.Unmarshal(data, &statuses)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return true
	}
	if in["status"] = statuses[key]; in["status"] == nil {
		in["status"] = json.RawMessage("{}")
	}
	_ = json.NewEncoder(w).Encode(in)
	return true
}

// issuer is an OpenID Connect issuer.
type issuer struct {
	url string
	key *ecdsa.PrivateKey
}

// start signs what the file NAME.claims holds (JSON: claims by name), for the audience coracle, into the files NAME-name.token.
func (i *issuer) start(ts *testscript.TestScript, name, url string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	i.key, i.url = key, url
	data, err := os.ReadFile(ts.MkAbs(name + ".claims"))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	ts.Check(err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "a"}}, nil)
	ts.Check(err)
	all := map[string]map[string]any{}
	ts.Check(json.Unmarshal(data, &all))
	for of, claims := range all {
		for k, v := range map[string]any{"iss": url, "aud": "coracle", "exp": time.Now().Add(time.Hour).Unix()} {
			if claims[k] == nil {
				claims[k] = v
			}
		}
		text, err := json.Marshal(claims)
		ts.Check(err)
		signed, err := signer.Sign(text)
		ts.Check(err)
		token, err := signed.CompactSerialize()
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name+"-"+of+".token"), []byte(token), 0o600))
	}
}

func (i *issuer) serve(w http.ResponseWriter, r *http.Request) bool {
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.url, "jwks_uri": i.url + "/keys"})
	case "/keys":
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &i.key.PublicKey, KeyID: "a", Algorithm: "ES256", Use: "sig"}}})
	default:
		return false
	}
	return true
}

package scripts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
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

// issuer is an OpenID Connect issuer: /issue?claim=value gives a token for the audience coracle.
type issuer struct {
	once sync.Once
	key  *ecdsa.PrivateKey
	err  error
}

func (i *issuer) serve(w http.ResponseWriter, r *http.Request) bool {
	i.once.Do(func() { i.key, i.err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader) })
	url := "https://" + r.Host
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": url, "jwks_uri": url + "/keys"})
	case "/keys":
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &i.key.PublicKey, KeyID: "a", Algorithm: "ES256", Use: "sig"}}})
	case "/issue":
		claims := map[string]any{"iss": url, "aud": "coracle", "exp": time.Now().Add(time.Hour).Unix()}
		for _, name := range slices.Sorted(maps.Keys(r.URL.Query())) {
			claims[name] = r.URL.Query().Get(name)
		}
		text, _ := json.Marshal(claims)
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "a"}}, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return true
		}
		signed, err := signer.Sign(text)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return true
		}
		token, _ := signed.CompactSerialize()
		fmt.Fprint(w, token)
	default:
		return false
	}
	return true
}

package scripts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"coracle.dev/coracle/linux/link"
)

// serveExtension is the command extension NAME DNSNAME CAFILE: it serves an extension API server (flunders in ext.example.com/v1) over
// HTTPS at the machine's address until the script ends. Its certificate is for DNSNAME, and it believes the user headers of
// clients with a certificate of the authority in CAFILE. Custom and external metrics (v1beta2, v1beta1) have the value in the file NAME.METRIC. NAME_IP, NAME_PORT and NAME_CA say how it is reached. While the
// file NAME.broken exists it answers everything with 500. What it was asked for goes to NAME.log: user, groups, method, path.
func serveExtension(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: extension NAME DNSNAME CAFILE")
	}
	host, err := link.HostAddr()
	ts.Check(err)
	l, err := net.Listen("tcp", net.JoinHostPort(host.String(), "0"))
	ts.Check(err)
	cert, authority, err := selfSigned(args[1])
	ts.Check(err)
	front := x509.NewCertPool()
	if !front.AppendCertsFromPEM([]byte(ts.ReadFile(args[2]))) {
		ts.Fatalf("%s holds no certificate", args[2])
	}
	e := &extension{broken: ts.MkAbs(args[0] + ".broken"), log: ts.MkAbs(args[0] + ".log"), flunders: map[string]map[string]any{}, changed: make(chan struct{})}
	s := httptest.NewUnstartedServer(e)
	s.Listener.Close()
	s.Listener = l
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: front, ClientAuth: tls.RequireAndVerifyClientCert}
	s.StartTLS()
	ts.Defer(func() { s.CloseClientConnections(); s.Close() })
	ts.Setenv(args[0]+"_IP", host.String())
	ts.Setenv(args[0]+"_PORT", fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	ts.Setenv(args[0]+"_CA", base64.StdEncoding.EncodeToString(authority))
}

// selfSigned makes a certificate that is its own authority.
func selfSigned(name string) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// extension keeps flunders in memory.
type extension struct {
	broken, log string
	revision    atomic.Int64

	mu       sync.Mutex // guards what follows
	flunders map[string]map[string]any
	last     map[string]any // the newest
	changed  chan struct{}  // closed when there is a newer one
}

const (
	extensionKinds = `{"kind":"APIGroupDiscoveryList","apiVersion":"apidiscovery.k8s.io/v2","items":[{"metadata":{"name":"ext.example.com"},"versions":[{"version":"v1","freshness":"Current","resources":[
		{"resource":"flunders","singularResource":"flunder","scope":"Namespaced","shortNames":["fl"],"verbs":["create","delete","get","list","watch"],"responseKind":{"group":"ext.example.com","version":"v1","kind":"Flunder"}}]}]}]}`
	extensionDocument = `{"openapi":"3.0.0","info":{"title":"ext","version":"1"},"paths":{"/apis/ext.example.com/v1/namespaces/{namespace}/flunders":{"get":{"responses":{"200":{"description":"OK"}},"x-kubernetes-action":"list",
		"x-kubernetes-group-version-kind":{"group":"ext.example.com","version":"v1","kind":"Flunder"}}}},
		"components":{"schemas":{"com.example.ext.v1.Flunder":{"type":"object","description":"A flat fish.","properties":{"spec":{"type":"object","description":"What it is made of.","properties":{"scales":{"type":"integer","description":"How many there are."}}}},
		"x-kubernetes-group-version-kind":[{"group":"ext.example.com","version":"v1","kind":"Flunder"}]}}}}`
)

func (e *extension) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if r.URL.Query().Get("watch") != "" {
		method = "WATCH"
	}
	f, err := os.OpenFile(e.log, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		fmt.Fprintf(f, "%s %s %s %s\n", r.Header.Get("X-Remote-User"), strings.Join(r.Header["X-Remote-Group"], ","), method, r.URL.Path)
		f.Close()
	}
	if _, err := os.Stat(e.broken); err == nil {
		http.Error(w, "broken", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	const items = "/apis/ext.example.com/v1/namespaces/default/flunders"
	switch path := strings.TrimSuffix(r.URL.Path, "/"); {
	case path == "/apis":
		w.Header().Set("Content-Type", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
		fmt.Fprint(w, extensionKinds)
	case path == "/apis/custom.metrics.k8s.io/v1beta2", path == "/apis/external.metrics.k8s.io/v1beta1":
		fmt.Fprintf(w, `{"kind":"APIResourceList","groupVersion":%q,"resources":[]}`, strings.TrimPrefix(path, "/apis/"))
	case path == "/apis/ext.example.com/v1":
		fmt.Fprint(w, `{"kind":"APIResourceList","groupVersion":"ext.example.com/v1","resources":[]}`)
	case path == "/openapi/v3":
		fmt.Fprint(w, `{"paths":{"apis/ext.example.com/v1":{"serverRelativeURL":"/openapi/v3/apis/ext.example.com/v1?hash=F"}}}`)
	case path == "/openapi/v3/apis/ext.example.com/v1":
		fmt.Fprint(w, extensionDocument)
	case path == items && r.Method == http.MethodPost:
		e.create(w, r)
	case path == items && r.URL.Query().Get("watch") != "":
		e.watch(w, r)
	case path == items:
		e.list(w)
	case strings.HasPrefix(path, "/apis/custom.metrics.k8s.io/v1beta2/namespaces/"), strings.HasPrefix(path, "/apis/external.metrics.k8s.io/v1beta1/namespaces/"):
		e.metric(w, path)
	case strings.HasPrefix(path, items+"/") && r.Method == http.MethodDelete:
		e.mu.Lock()
		delete(e.flunders, strings.TrimPrefix(path, items+"/"))
		e.mu.Unlock()
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Success"}`)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"no such flunder"}`)
	}
}

// metric answers every custom and external metric with one value: what stands in the file NAME.METRIC, 404 without it.
func (e *extension) metric(w http.ResponseWriter, path string) {
	name := path[strings.LastIndex(path, "/")+1:]
	value, err := os.ReadFile(strings.TrimSuffix(e.log, "log") + name)
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"there is no metric %s"}`, name)
		return
	}
	fmt.Fprintf(w, `{"items":[{"describedObject":{"kind":"Service","namespace":"default","name":"front"},"timestamp":%q,"value":%q}]}`,
		time.Now().UTC().Format(time.RFC3339), strings.TrimSpace(string(value)))
}

func (e *extension) create(w http.ResponseWriter, r *http.Request) {
	var obj map[string]any
	if err := json.NewDecoder(r.Body).Decode(&obj); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	meta := obj["metadata"].(map[string]any)
	meta["namespace"], meta["resourceVersion"], meta["uid"] = "default", fmt.Sprint(e.revision.Add(1)), fmt.Sprint(e.revision.Load())
	e.mu.Lock()
	e.flunders[meta["name"].(string)], e.last = obj, obj
	close(e.changed)
	e.changed = make(chan struct{})
	e.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(obj)
}

func (e *extension) list(w http.ResponseWriter) {
	e.mu.Lock()
	defer e.mu.Unlock()
	items := []any{}
	var names []string
	for name := range e.flunders {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		items = append(items, e.flunders[name])
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "FlunderList", "apiVersion": "ext.example.com/v1",
		"metadata": map[string]any{"resourceVersion": fmt.Sprint(e.revision.Load())}, "items": items})
}

// watch sends each new flunder as it comes.
func (e *extension) watch(w http.ResponseWriter, r *http.Request) {
	w.(http.Flusher).Flush()
	for {
		e.mu.Lock()
		changed := e.changed
		e.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		e.mu.Lock()
		data, _ := json.Marshal(map[string]any{"type": "ADDED", "object": e.last})
		e.mu.Unlock()
		fmt.Fprintln(w, string(data))
		w.(http.Flusher).Flush()
	}
}

package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/internal/version"
	"coracle.dev/coracle/store"
)

// Time limits. A watch has none of its own but its timeoutSeconds: a connection whose peer is gone is found by pings.
const (
	dialTimeout   = 10 * time.Second
	answerTimeout = 30 * time.Second // of a request that is no watch
	headerTimeout = 40 * time.Second // until an answer begins
	pingAfter     = 15 * time.Second
	pingTimeout   = 10 * time.Second
	mostAnswer    = 256 << 20
	mostFrame     = 16 << 20
)

const (
	protobufMedia = "application/vnd.kubernetes.protobuf"
	jsonMedia     = "application/json"
)

// magic begins protobuf bodies.
var magic = []byte("k8s\x00")

// message is what every type with generated protobuf code has.
type message interface{ Marshal() ([]byte, error) }

// binaryKind tells whether a kind travels as protobuf.
func binaryKind(k *api.Kind) bool {
	_, ok := k.Hub().New().(message)
	return ok
}

func (c *Client) newTransport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       c.cfg.TLS,
		TLSHandshakeTimeout:   dialTimeout,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   4,
		DisableCompression:    true, // protobuf over a local network: time is dearer than bytes
	}
}

// request is one call of the API.
type request struct {
	method          string
	kind            *api.Kind
	namespace, name string
	subresource     string
	query           url.Values
	body            []byte
	media           string
}

func (r *request) set(name, value string) {
	if r.query == nil {
		r.query = url.Values{}
	}
	r.query.Set(name, value)
}

// url is where the request goes.
func (r *request) url(server string) string {
	v := r.kind.Hub().Name
	path := "/apis/" + r.kind.Group + "/" + v
	if r.kind.Group == "" {
		path = "/api/" + v
	}
	if r.kind.Namespaced && r.namespace != "" {
		path += "/namespaces/" + url.PathEscape(r.namespace)
	}
	path += "/" + r.kind.Resource
	if r.name != "" {
		path += "/" + url.PathEscape(r.name)
	}
	if r.subresource != "" {
		path += "/" + r.subresource
	}
	if len(r.query) > 0 {
		path += "?" + r.query.Encode()
	}
	return server + path
}

// answer is the body of a response that was no error.
type answer struct {
	media string
	data  []byte
}

// isStatus tells whether it is a Status and not an object.
func (a answer) isStatus() bool {
	var meta runtime.TypeMeta
	if bytes.HasPrefix(a.data, magic) {
		var env runtime.Unknown
		if env.Unmarshal(a.data[len(magic):]) != nil {
			return false
		}
		meta = env.TypeMeta
	} else if json.Unmarshal(a.data, &meta) != nil {
		return false
	}
	return meta.Kind == "Status" && meta.APIVersion == "v1"
}

// open sends a request and returns the response if it is no error. The caller closes its body.
func (c *Client) open(ctx context.Context, r request, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, r.url(c.cfg.Server), bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", "coracle/"+version.Coracle)
	if r.media != "" {
		req.Header.Set("Content-Type", r.media)
	}
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	c.mu.Lock()
	transport := c.transport
	c.mu.Unlock()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return nil, statusError(resp, r, data)
}

// do sends a request and reads its answer, within answerTimeout.
func (c *Client) do(ctx context.Context, r request) (answer, error) {
	bounded, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.open(bounded, r, accepts(r.kind))
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	if err != nil {
		return answer{}, unreachable(ctx, err)
	}
	return answer{resp.Header.Get("Content-Type"), data}, nil
}

func accepts(k *api.Kind) string {
	if binaryKind(k) {
		return protobufMedia + "," + jsonMedia
	}
	return jsonMedia
}

// unreachable is the error of a request to which there was no answer.
func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return apierrors.NewServiceUnavailable("the API server cannot be reached: " + err.Error())
}

// statusError is the error that the server told.
func statusError(resp *http.Response, r request, data []byte) error {
	if s, ok := decodeStatus(data); ok && s.Status != metav1.StatusSuccess {
		return &apierrors.StatusError{ErrStatus: *s}
	}
	gr := schema.GroupResource{Group: r.kind.Group, Resource: r.kind.Resource}
	return apierrors.NewGenericServerResponse(resp.StatusCode, r.method, gr, r.name, string(data[:min(len(data), 200)]), 0, false)
}

func decodeStatus(data []byte) (*metav1.Status, bool) {
	s := &metav1.Status{}
	if !bytes.HasPrefix(data, magic) {
		return s, json.Unmarshal(data, s) == nil && s.Kind == "Status"
	}
	var env runtime.Unknown
	if env.Unmarshal(data[len(magic):]) != nil || env.Kind != "Status" {
		return nil, false
	}
	return s, s.Unmarshal(env.Raw) == nil
}

// encode gives an object as it goes over the wire. It may set the object's TypeMeta.
func encode(k *api.Kind, obj api.Object) ([]byte, string, error) {
	gv, kind := schema.GroupVersion{Group: k.Group, Version: k.Hub().Name}.String(), k.Kind
	if gvk := obj.GetObjectKind().GroupVersionKind(); gvk.Kind != "" { // a subresource's own
		gv, kind = gvk.GroupVersion().String(), gvk.Kind
	}
	if m, ok := obj.(message); ok {
		data, err := envelope(gv, kind, m)
		return data, protobufMedia, err
	}
	obj = obj.DeepCopyObject().(api.Object)
	obj.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(gv, kind))
	data, err := json.Marshal(obj)
	return data, jsonMedia, err
}

func envelope(apiVersion, kind string, m message) ([]byte, error) {
	raw, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	env := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}, Raw: raw}
	data, err := env.Marshal()
	return append(bytes.Clone(magic), data...), err
}

func decode(codec store.Codec, resource string, a answer) (any, error) {
	return codec.Decode(store.Key{Resource: resource}, a.data)
}

// list is what a page of a list holds.
type list struct {
	objects  []api.Object
	revision string
	next     string
}

// decodeList takes a list apart. Each object is one of its own, so that none keeps the whole list in memory.
func decodeList(k *api.Kind, data []byte) (list, error) {
	into := k.Hub().NewList()
	if bytes.HasPrefix(data, magic) {
		var env runtime.Unknown
		if err := env.Unmarshal(data[len(magic):]); err != nil {
			return list{}, err
		}
		m, ok := into.(interface{ Unmarshal([]byte) error })
		if !ok {
			return list{}, fmt.Errorf("%T has no protobuf form", into)
		}
		if err := m.Unmarshal(env.Raw); err != nil {
			return list{}, err
		}
	} else if err := json.Unmarshal(data, into); err != nil {
		return list{}, err
	}
	return takeApart(into)
}

// decodeEvents reads the events of a watch one by one until the stream ends or see returns an error. frames tells the two forms
// apart.
func decodeEvents(body io.Reader, media string, see func(kind string, object []byte) error) error {
	if media == jsonMedia {
		d := json.NewDecoder(body)
		for {
			var ev struct {
				Type   string          `json:"type"`
				Object json.RawMessage `json:"object"`
			}
			if err := d.Decode(&ev); err != nil {
				return err
			}
			if err := see(ev.Type, ev.Object); err != nil {
				return err
			}
		}
	}
	var buffer []byte
	var length [4]byte
	for {
		if _, err := io.ReadFull(body, length[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(length[:])
		if n > mostFrame {
			return fmt.Errorf("a watch event of %d bytes is too long", n)
		}
		if int(n) > cap(buffer) {
			buffer = make([]byte, n)
		}
		buffer = buffer[:n]
		if _, err := io.ReadFull(body, buffer); err != nil {
			return err
		}
		var ev metav1.WatchEvent
		if err := ev.Unmarshal(buffer); err != nil {
			return fmt.Errorf("watch event: %w", err)
		}
		if err := see(ev.Type, ev.Object.Raw); err != nil {
			return err
		}
		if cap(buffer) > 64<<10 {
			buffer = nil // one large object does not stay
		}
	}
}

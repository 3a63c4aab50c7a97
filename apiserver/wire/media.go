// Package wire is the form in which objects cross the network: which media type a
// client asked for, how a body becomes an object, and how an entry of the store
// becomes bytes that every reader of that version shares.
//
// It knows kinds only as descriptors, never reads or writes the store, and holds no state but
// pools of buffers.
package wire

import (
	"mime"
	"net/http"
	"sort"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Media is a serialization.
type Media uint8

// The serializations, in order of preference.
const (
	JSON Media = iota
	YAML
	Protobuf
)

// The media types, as headers name them.
const (
	TypeJSON     = "application/json"
	TypeYAML     = "application/yaml"
	TypeProtobuf = "application/vnd.kubernetes.protobuf"
)

// String is the media type.
func (m Media) String() string {
	switch m {
	case YAML:
		return TypeYAML
	case Protobuf:
		return TypeProtobuf
	}
	return TypeJSON
}

// Stream is the media type of a watch.
func (m Media) Stream() string {
	if m == JSON {
		return TypeJSON
	}
	return m.String() + ";stream=watch"
}

// Accept is what a client wants to be answered in.
type Accept struct {
	Media  Media
	Pretty bool
	// As is the kind that objects shall be turned into (Table, PartialObjectMetadata), nil for themselves.
	As *schema.GroupVersionKind
}

// Offer says what an endpoint can be asked for.
type Offer struct {
	// NoProtobuf is set where the type has no protobuf form (custom resources).
	NoProtobuf bool
	// Transform allows Table and PartialObjectMetadata.
	Transform bool
	// Stream is set for watches.
	Stream bool
	// Other allows further target kinds (discovery).
	Other func(as schema.GroupVersionKind) bool
}

// Negotiate picks the first form of the Accept header, by its weights, that the
// endpoint offers; the error is 406 in upstream's words.
func Negotiate(r *http.Request, offer Offer) (Accept, error) {
	header := strings.Join(r.Header["Accept"], ",")
	pretty := wantsPretty(r)
	switch header {
	case "", "*/*", TypeJSON:
		return Accept{Pretty: pretty}, nil
	case TypeProtobuf, TypeProtobuf + ", " + TypeJSON, TypeProtobuf + "," + TypeJSON:
		if !offer.NoProtobuf {
			return Accept{Media: Protobuf}, nil
		}
	}
	for _, c := range parseAccept(header) {
		if a, ok := offer.accept(c); ok {
			a.Pretty = a.Pretty || pretty
			return a, nil
		}
	}
	return Accept{}, NotAcceptable(offer.types())
}

// wantsPretty tells whether a person is probably reading.
func wantsPretty(r *http.Request) bool {
	if strings.Contains(r.URL.RawQuery, "pretty") {
		if v := r.URL.Query().Get("pretty"); v != "" {
			pretty, _ := strconv.ParseBool(v)
			return pretty
		}
	}
	agent := r.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

func (o Offer) types() []string {
	types := []string{TypeJSON, TypeYAML, TypeProtobuf}
	if o.NoProtobuf {
		types = types[:2]
	}
	if o.Stream {
		for i, t := range types {
			types[i] = t + ";stream=watch"
		}
	}
	return types
}

// accept matches one clause of the header.
func (o Offer) accept(c clause) (Accept, bool) {
	var a Accept
	switch c.media {
	case TypeJSON, "*/*", "application/*":
	case TypeYAML:
		a.Media = YAML
	case TypeProtobuf:
		if o.NoProtobuf {
			return a, false
		}
		a.Media = Protobuf
	default:
		return a, false
	}
	var as schema.GroupVersionKind
	for _, p := range c.params {
		switch p[0] {
		case "as":
			as.Kind = p[1]
		case "g":
			as.Group = p[1]
		case "v":
			as.Version = p[1]
		case "stream":
			if p[1] != "" && p[1] != "watch" {
				return a, false
			}
		case "sv":
			if p[1] != "" {
				return a, false
			}
		case "pretty":
			a.Pretty = p[1] == "1"
		}
	}
	if as == (schema.GroupVersionKind{}) {
		return a, true
	}
	if !o.allows(as, a.Media) {
		return a, false
	}
	a.As = &as
	return a, true
}

// allows tells whether objects can be turned into as.
func (o Offer) allows(as schema.GroupVersionKind, m Media) bool {
	if o.Other != nil {
		return o.Other(as)
	}
	if !o.Transform || as.Group != metav1.GroupName || as.Version != "v1" && as.Version != "v1beta1" {
		return false
	}
	switch as.Kind {
	case "Table":
		return m != Protobuf
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		return true
	}
	return false
}

// clause is one alternative of an Accept header.
type clause struct {
	media  string
	q      float64
	params [][2]string
}

// parseAccept reads a header; a clause that is not understood is dropped. At most 32 count.
func parseAccept(header string) []clause {
	var out []clause
	for header != "" && len(out) < 32 {
		var part string
		part, header, _ = strings.Cut(header, ",")
		fields := strings.Split(part, ";")
		c := clause{media: strings.ToLower(strings.TrimSpace(fields[0])), q: 1}
		for _, f := range fields[1:] {
			k, v, _ := strings.Cut(f, "=")
			k, v = strings.TrimSpace(k), strings.Trim(strings.TrimSpace(v), `"`)
			if k == "q" {
				if q, err := strconv.ParseFloat(v, 64); err == nil {
					c.q = q
				}
				continue
			}
			c.params = append(c.params, [2]string{k, v})
		}
		if c.q > 0 && c.media != "" {
			out = append(out, c)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].q > out[j].q })
	return out
}

// ContentType tells the form of a request body. The error is 415 in upstream's words.
func ContentType(r *http.Request, noProtobuf bool) (Media, error) {
	header := r.Header.Get("Content-Type")
	switch header {
	case "", TypeJSON:
		return JSON, nil
	case TypeProtobuf:
		if !noProtobuf {
			return Protobuf, nil
		}
	}
	if media, _, err := mime.ParseMediaType(header); err == nil {
		switch media {
		case TypeJSON:
			return JSON, nil
		case TypeYAML:
			return YAML, nil
		case TypeProtobuf:
			if !noProtobuf {
				return Protobuf, nil
			}
		}
	}
	return JSON, UnsupportedMediaType(Offer{NoProtobuf: noProtobuf}.types())
}

package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
)

// MaxBody is how many bytes a request body may have (3 MiB, as upstream).
const MaxBody = 3 << 20

// maxDepth is how deep a JSON or YAML body may nest. No served type nests deeper than a
// schema does, and what nests deeper costs more to refuse later.
const maxDepth = 1000

// ReadBody reads a body of at most MaxBody bytes; a longer one gives 413, before it was
// read where its length was announced.
func ReadBody(r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	if r.ContentLength > MaxBody {
		return nil, tooLarge()
	}
	buf := bytes.NewBuffer(make([]byte, 0, max(512, r.ContentLength+bytes.MinRead)))
	n, err := buf.ReadFrom(io.LimitReader(r.Body, MaxBody+1))
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("unable to read the request body: %v", err))
	}
	if n > MaxBody {
		return nil, tooLarge()
	}
	return buf.Bytes(), nil
}

func tooLarge() error {
	return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", MaxBody))
}

// Known tells whether a kind of that name is served, to tell a wrong kind from an unknown one.
type Known func(schema.GroupVersionKind) bool

// Decode reads a body into an empty object of the wanted kind. Kind and
// apiVersion may be missing in the body; what they say otherwise must be wanted. The strict
// errors (unknown and duplicate fields) are no failure; they are looked for only if strict is set.
// The object's TypeMeta is left empty.
func Decode(media Media, body []byte, want schema.GroupVersionKind, into runtime.Object, strict bool, known Known) (strictErrs []error, err error) {
	var said schema.GroupVersionKind
	switch media {
	case Protobuf:
		said, err = decodeProtobuf(body, into)
	default:
		said, strictErrs, err = decodeText(media, body, into, strict)
	}
	said = withDefaults(said, want)
	if err != nil {
		return nil, decodeError(err, said.Kind, said.Version, want.Kind, body)
	}
	if err := check(said, want, known); err != nil {
		return nil, err
	}
	if _, ok := into.(runtime.Unstructured); !ok {
		into.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	return strictErrs, nil
}

// withDefaults fills what a body does not say of its type.
func withDefaults(said, want schema.GroupVersionKind) schema.GroupVersionKind {
	if said.Kind == "" {
		said.Kind = want.Kind
	}
	if said.Version == "" && said.Group == "" {
		said.Group, said.Version = want.Group, want.Version
	}
	return said
}

// check compares the type that a body has with the one that the endpoint takes.
func check(said, want schema.GroupVersionKind, known Known) error {
	if said == want {
		return nil
	}
	if said.Kind == want.Kind && (known == nil || known(said)) {
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)",
			said.GroupVersion(), want.GroupVersion()))
	}
	why := fmt.Sprintf("converting (%s.%s) to (%s.%s): unknown conversion", said.Version, said.Kind, want.Version, want.Kind)
	if known == nil || !known(said) {
		why = fmt.Sprintf("no kind %q is registered for version %q in scheme \"pkg/api/legacyscheme/scheme.go:30\"", said.Kind, said.GroupVersion())
	}
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %s", said.Kind, said.Version, want.Kind, why))
}

// decodeText reads JSON, or YAML by way of JSON.
func decodeText(media Media, body []byte, into runtime.Object, strict bool) (said schema.GroupVersionKind, strictErrs []error, err error) {
	data := body
	if media == YAML {
		if data, err = FromYAML(body); err != nil {
			return said, nil, err
		}
		if strict {
			if _, err := yaml.YAMLToJSONStrict(body); err != nil {
				strictErrs = append(strictErrs, err)
			}
		}
	}
	if err := checkDepth(data); err != nil {
		return said, nil, err
	}
	found, err := unmarshal(data, into, strict)
	if err != nil {
		return typeOf(data), nil, err
	}
	gvk := into.GetObjectKind().GroupVersionKind()
	return gvk, append(strictErrs, found...), nil
}

// unmarshal reads JSON into an object, with what strict decoding finds.
func unmarshal(data []byte, into runtime.Object, strict bool) ([]error, error) {
	target := any(into)
	u, loose := into.(runtime.Unstructured)
	m := map[string]any{}
	if loose {
		target = &m
	}
	var strictErrs []error
	var err error
	if strict {
		strictErrs, err = kjson.UnmarshalStrict(data, target)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, target)
	}
	if err == nil && loose {
		u.SetUnstructuredContent(m)
	}
	return strictErrs, err
}

// UnmarshalJSON reads JSON into a versioned object, as patches need it.
func UnmarshalJSON(data []byte, into runtime.Object, strict bool) ([]error, error) {
	if err := checkDepth(data); err != nil {
		return nil, err
	}
	return unmarshal(data, into, strict)
}

// typeOf reads kind and apiVersion alone, as far as they can be read.
func typeOf(data []byte) schema.GroupVersionKind {
	var t metav1.TypeMeta
	_ = json.Unmarshal(data, &t)
	return t.GroupVersionKind()
}

// FromYAML turns YAML into JSON. Documents that grow by aliases are refused.
func FromYAML(body []byte) ([]byte, error) {
	if len(body) > 0 && (body[0] == '{' || body[0] == '[') && json.Valid(body) {
		return body, nil
	}
	if err := checkAliases(body); err != nil {
		return nil, err
	}
	return yaml.YAMLToJSON(body)
}

// maxAliases is how many YAML aliases a body may use. Nobody writes more by hand, and a
// document that grows without bound needs them.
const maxAliases = 1000

// checkAliases counts what may be aliases ("*name" at the start of a value); it may count
// too many in block text, which the limit leaves room for.
func checkAliases(body []byte) error {
	n := 0
	for i := 0; i+1 < len(body); i++ {
		if body[i] != '*' || body[i+1] == ' ' || body[i+1] == '\n' || body[i+1] == '*' || body[i+1] == '/' {
			continue
		}
		if i == 0 || strings.IndexByte(" \n[,{:", body[i-1]) >= 0 {
			if n++; n > maxAliases {
				return errors.New("yaml: document contains excessive aliasing")
			}
		}
	}
	return nil
}

// checkDepth refuses JSON that nests too deep, at the first byte that does.
func checkDepth(data []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString:
			switch c {
			case '\\':
				i++
			case '"':
				inString = false
			}
		case c == '"':
			inString = true
		case c == '{', c == '[':
			if depth++; depth > maxDepth {
				return errors.New("exceeded max depth")
			}
		case c == '}', c == ']':
			depth--
		}
	}
	return nil
}

// magic opens every protobuf body.
var magic = []byte("k8s\x00")

// unmarshaler is a type with a protobuf form.
type unmarshaler interface{ Unmarshal([]byte) error }

func decodeProtobuf(body []byte, into runtime.Object) (schema.GroupVersionKind, error) {
	raw, ok := bytes.CutPrefix(body, magic)
	if !ok {
		return schema.GroupVersionKind{}, errors.New("provided data does not appear to be a protobuf message, expected prefix " + fmt.Sprint(magic))
	}
	var envelope runtime.Unknown
	if err := envelope.Unmarshal(raw); err != nil {
		return schema.GroupVersionKind{}, err
	}
	said := schema.FromAPIVersionAndKind(envelope.APIVersion, envelope.Kind)
	target, ok := into.(unmarshaler)
	if !ok {
		return said, fmt.Errorf("object %T does not implement the protobuf marshalling interface and cannot be decoded", into)
	}
	if isRecursive(into) {
		if err := checkProtobufDepth(envelope.Raw); err != nil {
			return said, err
		}
	}
	return said, target.Unmarshal(envelope.Raw)
}

// StrictError is the refusal of a body with unknown or duplicate fields.
func StrictError(errs []error, want schema.GroupVersionKind) error {
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v",
		want.Kind, want.Version, want.Kind, runtime.NewStrictDecodingError(errs)))
}

// StrictWarnings words strict errors as warnings, one a field.
func StrictWarnings(errs []error) []string {
	var out []string
	for _, err := range errs {
		text := err.Error()
		for _, prefix := range []string{
			"error converting YAML to JSON: yaml: unmarshal errors:\n",
			"yaml: unmarshal errors:\n",
		} {
			text = strings.TrimPrefix(text, prefix)
		}
		for line := range strings.SplitSeq(text, "\n") {
			if line = strings.TrimSpace(line); line != "" {
				out = append(out, line)
			}
		}
	}
	return out
}

// Settle does with a decoded object what its version asks for beyond decoding (api.Version.Settle): custom
// resources are pruned by their schema. want is the endpoint's type, which errors name. Strict errors are as in Decode.
func Settle(v *api.Version, obj runtime.Object, strict bool, want schema.GroupVersionKind) ([]error, error) {
	if v.Settle == nil {
		return nil, nil
	}
	found, err := v.Settle(obj, strict)
	if err != nil {
		return nil, decodeError(err, want.Kind, want.Version, want.Kind, nil)
	}
	return found, nil
}

// ToHub turns an object of version v of kind k into the one that the chain of writes takes, which the caller owns if it
// owned obj. The context bounds what has to be asked of others (a conversion webhook).
func ToHub(ctx context.Context, k *api.Kind, v *api.Version, obj runtime.Object) (api.Object, error) {
	if v.ToHub != nil {
		return v.ToHub(obj)
	}
	o, ok := obj.(api.Object)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", obj)
	}
	if hub := k.Hub(); hub.Convert != nil && hub.Name != v.Name {
		return one(hub.Convert(ctx, []api.Object{o}))
	}
	return o, nil
}

// FromHub turns a hub object, or for custom resources one of any version, into version v of it. The result is shared
// if nothing had to change, else the caller's: nobody changes it without a copy.
func FromHub(ctx context.Context, v *api.Version, obj api.Object) (runtime.Object, error) {
	switch {
	case v.Convert != nil:
		return one(v.Convert(ctx, []api.Object{obj}))
	case v.FromHub != nil:
		return v.FromHub(obj)
	}
	return obj, nil
}

func one(objs []api.Object, err error) (api.Object, error) {
	if err != nil {
		return nil, err
	}
	return objs[0], nil
}

// DecodeDeleteOptions reads the options in the body of a DELETE. Any group version is
// taken, since clients name that of the resource.
func DecodeDeleteOptions(media Media, body []byte, into *metav1.DeleteOptions) error {
	var said schema.GroupVersionKind
	var err error
	if media == Protobuf {
		said, err = decodeProtobuf(body, into)
	} else {
		said, _, err = decodeText(media, body, into, false)
	}
	if err == nil && said.Kind != "" && said.Kind != "DeleteOptions" {
		err = errors.New("decoded object cannot be converted to DeleteOptions")
	}
	return err
}

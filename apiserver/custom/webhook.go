package custom

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/apiserver/backend"
)

const (
	// conversionTimeout bounds one call of a conversion webhook, as upstream.
	conversionTimeout = 30 * time.Second
	// maxAnswer is how many bytes a webhook may answer with: a page of a list, each object as great as a request may be, would be
	// more, but no server that is well sends it.
	maxAnswer = 64 << 20
)

// reviewVersions are the versions of ConversionReview that are spoken.
var reviewVersions = []string{"v1", "v1beta1"}

// review is a ConversionReview, whose v1 and v1beta1 look the same on the wire.
type review struct {
	metav1.TypeMeta `json:",inline"`
	Request         *reviewRequest  `json:"request,omitempty"`
	Response        *reviewResponse `json:"response,omitempty"`
}

type reviewRequest struct {
	UID               types.UID        `json:"uid"`
	DesiredAPIVersion string           `json:"desiredAPIVersion"`
	Objects           []map[string]any `json:"objects"`
}

type reviewResponse struct {
	UID              types.UID         `json:"uid"`
	ConvertedObjects []json.RawMessage `json:"convertedObjects"`
	Result           metav1.Status     `json:"result"`
}

// ask has a conversion webhook convert objects, in one call.
func (d *definition) ask(ctx context.Context, w *apiextensionsv1.WebhookConversion, want string, in []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	out := make([]*unstructured.Unstructured, len(in))
	var sent []int
	for i, u := range in {
		if u.GetName() == "" && u.GetGenerateName() == "" && len(u.Object) <= len(bare) {
			out[i] = restamp(u, want) // nothing to ask about
			continue
		}
		sent = append(sent, i)
	}
	if len(sent) == 0 {
		return out, nil
	}
	from := in[sent[0]].GroupVersionKind()
	if len(sent) > 1 {
		from.Kind = d.names.ListKind
	}
	objects := make([]map[string]any, len(sent))
	for n, i := range sent {
		objects[n] = in[i].Object
	}
	answer, err := d.call(ctx, w, want, objects)
	if err != nil {
		return nil, fmt.Errorf("conversion webhook for %v failed: %w", from, err)
	}
	if len(answer) != len(sent) {
		return nil, fmt.Errorf("conversion webhook for %v returned %d objects, expected %d", from, len(answer), len(sent))
	}
	for n, i := range sent {
		if out[i], err = accept(in[i], answer[n], want); err != nil {
			var meta metadataError
			what := "invalid converted object"
			if errors.As(err, &meta) {
				what = "invalid metadata in object"
			}
			if len(sent) == 1 {
				if what = "invalid object"; errors.As(err, &meta) {
					what = "invalid metadata"
				}
				return nil, fmt.Errorf("conversion webhook for %v returned %s: %w", from, what, err)
			}
			return nil, fmt.Errorf("conversion webhook for %v returned %s at index %d: %w", from, what, n, err)
		}
	}
	return out, nil
}

// call sends a ConversionReview and returns the objects of the answer.
func (d *definition) call(ctx context.Context, w *apiextensionsv1.WebhookConversion, want string, objects []map[string]any) ([]json.RawMessage, error) {
	i := slices.IndexFunc(w.ConversionReviewVersions, func(v string) bool { return slices.Contains(reviewVersions, v) })
	if i < 0 {
		return nil, errors.New("no supported conversion review versions")
	}
	version := apiextensionsv1.GroupName + "/" + w.ConversionReviewVersions[i]
	question := review{
		TypeMeta: metav1.TypeMeta{Kind: "ConversionReview", APIVersion: version},
		Request:  &reviewRequest{UID: uuid.NewUUID(), DesiredAPIVersion: want, Objects: objects},
	}
	body, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	data, err := d.post(ctx, w.ClientConfig, body)
	if err != nil {
		return nil, err
	}
	var answer review
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	if version == apiextensionsv1.SchemeGroupVersion.String() {
		wanted := apiextensionsv1.SchemeGroupVersion.WithKind("ConversionReview")
		if have := answer.GroupVersionKind(); have != wanted {
			return nil, fmt.Errorf("expected webhook response of %v, got %v", wanted, have)
		}
		if answer.Response != nil && answer.Response.UID != question.Request.UID {
			return nil, fmt.Errorf("expected response.uid=%q, got %q", question.Request.UID, answer.Response.UID)
		}
	}
	if answer.Response == nil {
		return nil, errors.New("no response provided")
	}
	if result := answer.Response.Result; result.Status != metav1.StatusSuccess {
		if result.Message != "" {
			return nil, errors.New(result.Message)
		}
		return nil, fmt.Errorf("response.result.status was '%s', not 'Success'", result.Status)
	}
	return answer.Response.ConvertedObjects, nil
}

// post sends JSON to the webhook and reads what it says.
func (d *definition) post(ctx context.Context, config *apiextensionsv1.WebhookClientConfig, body []byte) ([]byte, error) {
	if config == nil || d.pool == nil {
		return nil, errors.New("the conversion webhook has no address")
	}
	client, address, err := d.pool.Client(target(config))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, conversionTimeout)
	defer cancel()
	u := *address
	q := u.Query()
	q.Set("timeout", conversionTimeout.String())
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, data, err := backend.Do(client, req, maxAnswer)
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return nil, apierrors.NewGenericServerResponse(resp.StatusCode, "post", schema.GroupResource{}, "", string(bytes.TrimSpace(data[:min(len(data), 2048)])), 0, true)
	}
	return data, nil
}

// target is where a webhook is.
func target(config *apiextensionsv1.WebhookClientConfig) backend.Target {
	t := backend.Target{CABundle: bytes.TrimSpace(config.CABundle)}
	if config.URL != nil {
		t.URL = *config.URL
	}
	if s := config.Service; s != nil {
		t.Service = &backend.Service{Namespace: s.Namespace, Name: s.Name}
		if s.Port != nil {
			t.Service.Port = *s.Port
		}
		if s.Path != nil {
			t.Service.Path = *s.Path
		}
	}
	return t
}

// metadataError is about what a webhook did to metadata.
type metadataError struct{ error }

// accept checks an object that a webhook answered with: it is the same object, in the wanted version, and of its metadata only
// labels and annotations are taken.
func accept(in *unstructured.Unstructured, data json.RawMessage, want string) (*unstructured.Unstructured, error) {
	content := map[string]any{}
	if err := utiljson.Unmarshal(data, &content); err != nil {
		return nil, err
	}
	out := &unstructured.Unstructured{Object: content}
	switch {
	case out.GetAPIVersion() != want:
		return nil, fmt.Errorf("invalid groupVersion (expected %v, received %v)", want, out.GetAPIVersion())
	case out.GetKind() != in.GetKind():
		return nil, fmt.Errorf("invalid kind (expected %v, received %v)", in.GetKind(), out.GetKind())
	case out.GetName() != in.GetName():
		return nil, fmt.Errorf("must have the same name: %v != %v", in.GetName(), out.GetName())
	case out.GetNamespace() != in.GetNamespace():
		return nil, fmt.Errorf("must have the same namespace: %v != %v", in.GetNamespace(), out.GetNamespace())
	case out.GetUID() != in.GetUID():
		return nil, fmt.Errorf("must have the same UID: %v != %v", in.GetUID(), out.GetUID())
	}
	if err := restoreMeta(in, out); err != nil {
		return nil, metadataError{err}
	}
	return out, nil
}

// restoreMeta puts the metadata of the original into the converted object, except for labels and annotations.
func restoreMeta(in, out *unstructured.Unstructured) error {
	answered, found := out.Object["metadata"]
	if !found {
		return errors.New("missing metadata in converted object")
	}
	said, ok := answered.(map[string]any)
	if !ok {
		return fmt.Errorf("invalid metadata of type %T in converted object", answered)
	}
	meta := map[string]any{}
	if have, ok := in.Object["metadata"].(map[string]any); ok {
		meta = runtime.DeepCopyJSON(have)
	}
	out.Object["metadata"] = meta
	for _, name := range []string{"labels", "annotations"} {
		value := said[name]
		if value == nil {
			delete(meta, name)
			continue
		}
		m, ok := value.(map[string]any)
		if !ok {
			return fmt.Errorf("invalid metadata.%s of type %T in converted object", name, value)
		}
		if err := checkStrings(name, m, meta[name]); err != nil {
			return err
		}
		meta[name] = m
	}
	return nil
}

// checkStrings checks labels or annotations that differ from those before.
func checkStrings(name string, m map[string]any, before any) error {
	old, _ := before.(map[string]any)
	all, same := make(map[string]string, len(m)), len(m) == len(old)
	for k, v := range m {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("metadata.%s[%s] must be a string, but is %T in converted object", name, k, v)
		}
		all[k] = s
		same = same && old[k] == v
	}
	if same {
		return nil
	}
	if name == "labels" {
		return metav1validation.ValidateLabels(all, field.NewPath("metadata", "labels")).ToAggregate()
	}
	return validation.ValidateAnnotations(all, field.NewPath("metadata", "annotation")).ToAggregate()
}

package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	reviewv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/admission/match"
	"coracle.dev/coracle/apiserver/wire"
)

// review is a request as webhooks are shown it in one version. The objects are encoded once for all that see them.
type review struct {
	match       match.Match
	object, old []byte // JSON, nil for none
}

// reviews are those of one request, for as long as its object does not change.
type reviews struct {
	r    *admission.Request
	made []*review
}

// in shows the request in a version.
func (s *reviews) in(ctx context.Context, m match.Match) (*review, error) {
	for _, v := range s.made {
		if v.match.Kind == m.Kind {
			return &review{match: m, object: v.object, old: v.old}, nil
		}
	}
	v := &review{match: m}
	var err error
	if v.object, err = shown(ctx, &m, match.Object(s.r)); err != nil {
		return nil, err
	}
	if v.old, err = shown(ctx, &m, match.Old(s.r)); err != nil {
		return nil, err
	}
	s.made = append(s.made, v)
	return v, nil
}

// shown encodes an object in the version that matched.
func shown(ctx context.Context, m *match.Match, obj runtime.Object) ([]byte, error) {
	if obj == nil {
		return nil, nil
	}
	versioned, err := m.Convert(ctx, obj)
	if err != nil {
		return nil, err
	}
	body, err := wire.Object(wire.JSON, versioned, m.Kind)
	return body.Bytes(), err
}

// body is the AdmissionReview that is sent. Both versions have the same fields.
func (v *review) body(r *admission.Request, version string, uid types.UID) ([]byte, error) {
	own := match.Own(r)
	kind, resource, dryRun := metav1.GroupVersionKind(own.Kind), metav1.GroupVersionResource(own.Resource), r.DryRun
	extra := make(map[string]authenticationv1.ExtraValue, len(r.User.Extra))
	for k, value := range r.User.Extra {
		extra[k] = value
	}
	return json.Marshal(&reviewv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: reviewKind(version).GroupVersion().String(), Kind: "AdmissionReview"},
		Request: &reviewv1.AdmissionRequest{
			UID: uid, Kind: metav1.GroupVersionKind(v.match.Kind), Resource: metav1.GroupVersionResource(v.match.Resource),
			SubResource: v.match.Subresource, RequestKind: &kind, RequestResource: &resource, RequestSubResource: r.Subresource,
			Name: r.ObjectName(), Namespace: r.ObjectNamespace(), Operation: reviewv1.Operation(r.Operation),
			UserInfo: authenticationv1.UserInfo{Username: r.User.Name, UID: r.User.UID, Groups: r.User.Groups, Extra: extra},
			Object:   runtime.RawExtension{Raw: v.object}, OldObject: runtime.RawExtension{Raw: v.old},
			DryRun: &dryRun, Options: runtime.RawExtension{Object: r.OperationOptions()},
		},
	})
}

func reviewKind(version string) schema.GroupVersionKind {
	return reviewv1.SchemeGroupVersion.WithKind("AdmissionReview").GroupKind().WithVersion(version)
}

// verify checks an answer. v1beta1 was never strict, and stays so.
func verify(answer *reviewv1.AdmissionReview, version string, uid types.UID, mutating bool) (*reviewv1.AdmissionResponse, error) {
	a := answer.Response
	if a == nil {
		return nil, errors.New("webhook response was absent")
	}
	if version == "v1beta1" {
		a.PatchType = nil
		if !mutating {
			a.Patch = nil
		} else if len(a.Patch) > 0 {
			json := reviewv1.PatchTypeJSONPatch
			a.PatchType = &json
		}
		return a, nil
	}
	if a.UID != uid {
		return nil, fmt.Errorf("expected response.uid=%q, got %q", uid, a.UID)
	}
	if want, have := reviewKind(version), answer.GroupVersionKind(); have != want {
		return nil, fmt.Errorf("expected webhook response of %v, got %v", want.String(), have.String())
	}
	switch {
	case mutating && len(a.Patch) > 0 && a.PatchType == nil:
		return nil, errors.New("webhook returned response.patch but not response.patchType")
	case mutating && len(a.Patch) == 0 && a.PatchType != nil:
		return nil, errors.New("webhook returned response.patchType but not response.patch")
	case mutating && a.PatchType != nil && *a.PatchType == "":
		return nil, fmt.Errorf("webhook returned invalid response.patchType of %q", *a.PatchType)
	case !mutating && len(a.Patch) > 0:
		return nil, errors.New("validating webhook may not return response.patch")
	case !mutating && a.PatchType != nil:
		return nil, errors.New("validating webhook may not return response.patchType")
	}
	return a, nil
}

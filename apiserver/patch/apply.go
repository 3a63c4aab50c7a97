package patch

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Configuration reads the body of a server-side apply. Each call gives an object of its own.
func (p *Patch) Configuration() (*unstructured.Unstructured, error) {
	out := &unstructured.Unstructured{Object: map[string]any{}}
	data, err := yaml.YAMLToJSON(p.Data)
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, &out.Object)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if out.Object == nil {
		out.Object = map[string]any{}
	}
	return out, nil
}

// CheckConfiguration looks for fields that stand twice, which is refused or warned of. Unknown fields are found when the
// configuration is merged.
func (p *Patch) CheckConfiguration() error {
	if !p.Check {
		return nil
	}
	err := yaml.UnmarshalStrict(p.Data, &map[string]any{})
	switch {
	case err == nil:
		return nil
	case p.Strict:
		return apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", err))
	}
	p.Warn([]error{err})
	return nil
}

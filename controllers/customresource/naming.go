package customresource

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// naming gives definitions their names, the first who asks, and establishes them.
type naming struct{ Config }

// keys are the definition itself and, when one lets names go, those of its group that wait for names.
func (n *naming) keys(s store.Snapshot, ev store.Event) []reconcile.Key {
	keys := reconcile.Self(s, ev)
	var before *definition
	if ev.Prev != nil {
		before = ev.Prev.Object.(*definition)
	}
	now := ev.Entry.Object.(*definition)
	released := ev.Deleted || before != nil && !equality.Semantic.DeepEqual(before.Status.AcceptedNames, now.Status.AcceptedNames)
	if !released {
		return keys
	}
	for crd := range definitions.List(s, "") {
		if crd.Name != now.Name && crd.Spec.Group == now.Spec.Group && !isTrue(crd, apiextensionsv1.NamesAccepted) {
			keys = append(keys, reconcile.Key{Name: crd.Name})
		}
	}
	return keys
}

func (n *naming) plan(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
	old, ok := definitions.Get(s, "", key.Name)
	if !ok || old.DeletionTimestamp != nil { // what goes is not served any more
		return reconcile.Plan{}, nil
	}
	if equality.Semantic.DeepEqual(old.Spec.Names, old.Status.AcceptedNames) && isTrue(old, apiextensionsv1.NamesAccepted) && isTrue(old, apiextensionsv1.Established) {
		return reconcile.Plan{}, nil
	}
	names, accepted := n.choose(s, old)
	crd := old.DeepCopy()
	crd.Status.AcceptedNames = names
	changed := !equality.Semantic.DeepEqual(names, old.Status.AcceptedNames)
	changed = setCondition(crd, accepted, now) || changed
	var plan reconcile.Plan
	if !isTrue(crd, apiextensionsv1.Established) {
		established := establish(crd, accepted)
		changed = setCondition(crd, established, now) || changed
		if established.Status == apiextensionsv1.ConditionTrue {
			plan.Effect = crd.DeepCopy()
		}
	}
	if changed {
		plan.Writes = []reconcile.Write{updateStatus(crd)}
	}
	return plan, nil
}

// apply has the objects served, before the status says that they are.
func (n *naming) apply(ctx context.Context, _ reconcile.Key, effect any) error {
	return n.Serve(ctx, effect.(*definition))
}

// establish is the condition of a definition that was not served before.
func establish(crd *definition, names apiextensionsv1.CustomResourceDefinitionCondition) apiextensionsv1.CustomResourceDefinitionCondition {
	c := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionFalse}
	switch {
	case names.Status != apiextensionsv1.ConditionTrue:
		c.Reason, c.Message = "NotAccepted", "not all names are accepted"
	case badAuthorities(crd):
		c.Reason, c.Message = "InvalidCABundle", "The conversion webhook CABundle is invalid"
	default:
		c.Status, c.Reason, c.Message = apiextensionsv1.ConditionTrue, "InitialNamesAccepted", "the initial names have been accepted"
	}
	return c
}

// badAuthorities tells that the webhook's certificates cannot be read.
func badAuthorities(crd *definition) bool {
	c := crd.Spec.Conversion
	if c == nil || c.Webhook == nil || c.Webhook.ClientConfig == nil {
		return false
	}
	pem := c.Webhook.ClientConfig.CABundle
	return strings.TrimSpace(string(pem)) != "" && !x509.NewCertPool().AppendCertsFromPEM(pem)
}

// choose decides which of the names that a definition asks for it gets, and says so.
func (n *naming) choose(s store.Snapshot, crd *definition) (apiextensionsv1.CustomResourceDefinitionNames, apiextensionsv1.CustomResourceDefinitionCondition) {
	resources, kinds := n.taken(s, crd)
	want, have := crd.Spec.Names, crd.Status.AcceptedNames
	out := *have.DeepCopy()
	c := apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue, Reason: "NoConflicts", Message: "no conflicts found",
	}
	refuse := func(reason string, err error) {
		c.Status, c.Reason, c.Message = apiextensionsv1.ConditionFalse, reason, err.Error()
	}
	ask := func(into *string, name, mine string, used map[string]bool, reason string) {
		if err := free(name, mine, used); err != nil {
			refuse(reason, err)
			return
		}
		*into = name
	}
	ask(&out.Plural, want.Plural, have.Plural, resources, "PluralConflict")
	ask(&out.Singular, want.Singular, have.Singular, resources, "SingularConflict")
	var errs []error
	for _, short := range want.ShortNames {
		if !slices.Contains(have.ShortNames, short) {
			if err := free(short, "", resources); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if err := utilerrors.NewAggregate(errs); err != nil {
		refuse("ShortNamesConflict", err)
	} else {
		out.ShortNames = want.ShortNames
	}
	ask(&out.Kind, want.Kind, have.Kind, kinds, "KindConflict")
	ask(&out.ListKind, want.ListKind, have.ListKind, kinds, "ListKindConflict")
	out.Categories = want.Categories
	return out, c
}

func free(name, mine string, used map[string]bool) error {
	if name == mine || !used[name] {
		return nil
	}
	return errors.New(fmt.Sprintf("%q is already in use", name)) //nolint:revive // the text is upstream's
}

// taken are the names that others of the group have: other definitions, and kinds of the program itself.
func (n *naming) taken(s store.Snapshot, crd *definition) (resources, kinds map[string]bool) {
	resources, kinds = map[string]bool{}, map[string]bool{}
	for other := range definitions.List(s, "") {
		if other.Name == crd.Name || other.Spec.Group != crd.Spec.Group {
			continue
		}
		names := &other.Status.AcceptedNames
		resources[names.Plural], resources[names.Singular] = true, true
		for _, short := range names.ShortNames {
			resources[short] = true
		}
		kinds[names.Kind], kinds[names.ListKind] = true, true
	}
	for _, k := range n.Registry.All() {
		// A definition of what the program serves itself (those of the Gateway API, that are installed by habit) describes that very
		// kind: it is accepted, and what is served stays what is built in.
		if same := k.Name() == crd.Name && k.Kind == crd.Spec.Names.Kind; k.Group == crd.Spec.Group && !same && n.BuiltIn(k.Name()) {
			resources[k.Resource], resources[k.Singular] = true, true
			kinds[k.Kind], kinds[k.Kind+"List"] = true, true
		}
	}
	// Their own names do not stand in the way of the definitions that have none yet.
	delete(resources, "")
	delete(kinds, "")
	return resources, kinds
}

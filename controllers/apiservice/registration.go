package apiservice

import (
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// automanaged is the label of the APIServices that are kept here, and its values: made at each start, or always.
const (
	automanaged = "kube-aggregator.kubernetes.io/automanaged"
	onStart     = "onstart"
	always      = "true"
)

var definitions = client.Resource[*apiextensionsv1.CustomResourceDefinition]{Name: "customresourcedefinitions.apiextensions.k8s.io"}

// start is the key of the pass for the built-in ones.
var start = reconcile.Key{Resource: "start"}

// registration keeps the APIServices of what is served here. One without the label, or of a group version that is none of
// ours, belongs to whoever made it.
func registration(cfg Config) reconcile.Loop {
	builtIn := map[string]Local{}
	for _, l := range cfg.BuiltIn {
		builtIn[l.name()] = l
	}
	return reconcile.Loop{
		Name:   "apiservice-registration-controller",
		Always: []reconcile.Key{start},
		Inputs: []reconcile.Input{
			{Resource: definitions.Name, Keys: versionsOf},
			{Resource: APIServices.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
				if _, ok := builtIn[ev.Entry.Name]; ok {
					return nil
				}
				return []reconcile.Key{{Name: ev.Entry.Name}}
			}},
		},
		Outputs: []reconcile.Output{{Resource: APIServices.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			if key == start {
				return planStart(s, cfg.BuiltIn, builtIn), nil
			}
			if _, ok := builtIn[key.Name]; ok {
				return reconcile.Plan{}, nil
			}
			return planCustom(s, key.Name), nil
		},
	}
}

// versionsOf gives the group versions that a definition has or had.
func versionsOf(_ store.Snapshot, ev store.Event) []reconcile.Key {
	var keys []reconcile.Key
	for _, e := range []*store.Entry{ev.Entry, ev.Prev} {
		if e == nil {
			continue
		}
		if d, ok := e.Object.(*apiextensionsv1.CustomResourceDefinition); ok {
			for i := range d.Spec.Versions {
				keys = append(keys, reconcile.Key{Name: d.Spec.Versions[i].Name + "." + d.Spec.Group})
			}
		}
	}
	return keys
}

// planStart makes the built-in ones that are missing, all together, and then mends those that are there.
func planStart(s store.Snapshot, all []Local, builtIn map[string]Local) reconcile.Plan {
	var creates, others []reconcile.Write
	for _, l := range all {
		want := l.object(onStart)
		have, ok := APIServices.Get(s, "", want.Name)
		switch {
		case !ok:
			creates = append(creates, reconcile.Write{Verb: reconcile.Create, Resource: APIServices.Name, Object: want})
		case have.Labels[automanaged] != "" && !sameSpec(have, want):
			have = have.DeepCopy()
			have.Spec = want.Spec
			others = append(others, reconcile.Write{Verb: reconcile.Update, Resource: APIServices.Name, Object: have})
		}
	}
	for a := range APIServices.List(s, "") {
		if _, ok := builtIn[a.Name]; !ok && a.Labels[automanaged] == onStart {
			others = append(others, remove(a))
		}
	}
	if len(creates) > 0 {
		p := reconcile.Plan{Writes: creates, Together: true}
		if len(others) > 0 {
			p.After = time.Nanosecond
		}
		return p
	}
	return reconcile.Plan{Writes: others}
}

// planCustom makes, mends or removes the one of a group version of custom resources.
func planCustom(s store.Snapshot, name string) reconcile.Plan {
	version, group, _ := strings.Cut(name, ".")
	have, ok := APIServices.Get(s, "", name)
	if !served(s, group, version) {
		if ok && have.Labels[automanaged] == always && have.DeletionTimestamp == nil {
			return reconcile.Plan{Writes: []reconcile.Write{remove(have)}}
		}
		return reconcile.Plan{}
	}
	want := Local{group, version, CustomGroupPriority, CustomVersionPriority}.object(always)
	switch {
	case !ok:
		return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Create, Resource: APIServices.Name, Object: want}}}
	case have.Labels[automanaged] != always || sameSpec(have, want):
		return reconcile.Plan{}
	}
	have = have.DeepCopy()
	have.Spec = want.Spec
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: APIServices.Name, Object: have}}}
}

// served tells whether a definition serves a group version.
func served(s store.Snapshot, group, version string) bool {
	for d := range definitions.List(s, "") {
		if d.Spec.Group != group {
			continue
		}
		for i := range d.Spec.Versions {
			if v := &d.Spec.Versions[i]; v.Name == version && v.Served {
				return true
			}
		}
	}
	return false
}

func remove(a *apiregistrationv1.APIService) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Delete, Resource: APIServices.Name, Name: a.Name, UID: a.UID}
}

func (l Local) object(managed string) *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: l.name(), Labels: map[string]string{automanaged: managed}},
		Spec: apiregistrationv1.APIServiceSpec{Group: l.Group, Version: l.Version,
			GroupPriorityMinimum: l.GroupPriority, VersionPriority: l.VersionPriority},
	}
}

// sameSpec compares the specs, of which that of ours names no server.
func sameSpec(have, want *apiregistrationv1.APIService) bool {
	return have.Spec.Service == nil && groupVersion(have) == groupVersion(want) && len(have.Spec.CABundle) == 0 && !have.Spec.InsecureSkipTLSVerify &&
		have.Spec.GroupPriorityMinimum == want.Spec.GroupPriorityMinimum && have.Spec.VersionPriority == want.Spec.VersionPriority
}

// Package revision keeps the history of pod templates that a controller has rolled
// out, as ControllerRevisions. It plans, and writes nothing itself.
package revision

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"

	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/store"
)

// HashLabel is the label with the hash of a revision's data.
const HashLabel = "controller.kubernetes.io/hash"

// longestOwner is how much of the owner's name goes into that of a revision.
const longestOwner = 223

// History is the revisions of one owner.
type History struct {
	// All are the revisions, the oldest first.
	All []*appsv1.ControllerRevision
	// Claims adopt and release revisions.
	Claims []reconcile.Write

	owner metav1.Object
	ref   metav1.OwnerReference
}

// Of finds the history of an owner.
func Of(s store.Snapshot, owner metav1.Object, ref metav1.OwnerReference, selector labels.Selector) *History {
	found := claim.Objects(s, client.ControllerRevisions, owner, ref, selector, nil)
	h := &History{All: found.Owned, Claims: found.Writes, owner: owner, ref: ref}
	slices.SortStableFunc(h.All, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return h
}

// Named is the revision of that name, nil if there is none.
func (h *History) Named(name string) *appsv1.ControllerRevision {
	for _, r := range h.All {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// Current is the revision that stands for template: one that is there, with the highest number, or a new one.
// write, if not nil, makes or renumbers it. collided says that the name of a new one is taken by something else;
// the owner then counts the collision and asks again.
func (h *History) Current(s store.Snapshot, template *corev1.PodTemplateSpec, extra map[string]string, collisions *int32) (rev *appsv1.ControllerRevision, write *reconcile.Write, collided bool) {
	data := encode(template)
	next := int64(1)
	if n := len(h.All); n > 0 {
		next = h.All[n-1].Revision + 1
	}
	for i := len(h.All) - 1; i >= 0; i-- {
		if !same(h.All[i], data) {
			continue
		}
		if i == len(h.All)-1 {
			return h.All[i], nil, false
		}
		rev = h.All[i].DeepCopy()
		rev.Revision = next
		h.All = append(slices.Delete(slices.Clone(h.All), i, i+1), rev)
		return rev, &reconcile.Write{Verb: reconcile.Update, Resource: client.ControllerRevisions.Name, Object: rev.DeepCopy()}, false
	}
	if n := len(h.All); n > 0 && sameToday(h.All[n-1], data) {
		return h.All[n-1], nil, false
	}
	rev = h.make(template, data, next, extra, collisions)
	if s.Get(store.Key{Resource: client.ControllerRevisions.Name, Namespace: rev.Namespace, Name: rev.Name}) != nil {
		return nil, nil, true
	}
	h.All = append(slices.Clone(h.All), rev)
	return rev, &reconcile.Write{Verb: reconcile.Create, Resource: client.ControllerRevisions.Name, Object: rev.DeepCopy()}, false
}

func (h *History) make(template *corev1.PodTemplateSpec, data []byte, number int64, extra map[string]string, collisions *int32) *appsv1.ControllerRevision {
	hash := hashOf(data, collisions)
	name := h.owner.GetName()
	if len(name) > longestOwner {
		name = name[:longestOwner]
	}
	l := maps.Clone(template.Labels)
	if l == nil {
		l = map[string]string{}
	}
	l[HashLabel] = hash
	for k, v := range extra {
		if v == "" {
			v = hash
		}
		l[k] = v
	}
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: h.owner.GetNamespace(), Name: name + "-" + hash, Labels: l,
			Annotations:     maps.Clone(h.owner.GetAnnotations()),
			OwnerReferences: []metav1.OwnerReference{h.ref},
		},
		Data:     runtime.RawExtension{Raw: data},
		Revision: number,
	}
}

// Surplus deletes the oldest revisions that are not in use, beyond limit.
func (h *History) Surplus(inUse map[string]bool, limit *int32) []reconcile.Write {
	keep := 10
	if limit != nil {
		keep = int(*limit)
	}
	var idle []*appsv1.ControllerRevision
	for _, r := range h.All {
		if !inUse[r.Name] {
			idle = append(idle, r)
		}
	}
	var writes []reconcile.Write
	for _, r := range idle[:max(len(idle)-keep, 0)] {
		writes = append(writes, reconcile.Write{Verb: reconcile.Delete, Resource: client.ControllerRevisions.Name,
			Namespace: r.Namespace, Name: r.Name, UID: r.UID})
	}
	return writes
}

// encode is a template as kubectl's rollout commands expect it in a revision: a strategic merge patch that replaces it.
func encode(t *corev1.PodTemplateSpec) []byte {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(t)
	if err != nil {
		panic(fmt.Sprintf("a pod template that cannot be encoded: %v", err))
	}
	fields["$patch"] = "replace"
	data, err := json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
	if err != nil {
		panic(fmt.Sprintf("a pod template that cannot be encoded: %v", err))
	}
	return data
}

// Template is the pod template that a revision holds.
func Template(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var data struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &data); err != nil {
		return nil, fmt.Errorf("revision %s: %w", r.Name, err)
	}
	return &data.Spec.Template, nil
}

// same compares by content: what is stored may be spaced or ordered differently.
func same(r *appsv1.ControllerRevision, data []byte) bool {
	if string(r.Data.Raw) == string(data) {
		return true
	}
	var a, b any
	if json.Unmarshal(r.Data.Raw, &a) != nil || json.Unmarshal(data, &b) != nil {
		return false
	}
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

// sameToday tells whether the template that a revision holds is this one with the defaults of today: a version that has
// a default more than the one which wrote the revision does not roll everything out anew.
func sameToday(r *appsv1.ControllerRevision, data []byte) bool {
	t, err := Template(r)
	if err != nil {
		return false
	}
	core.DefaultPodTemplate(t)
	return string(encode(t)) == string(data)
}

func hashOf(data []byte, collisions *int32) string {
	h := fnv.New32()
	_, _ = h.Write(data)
	if collisions != nil {
		fmt.Fprint(h, *collisions)
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

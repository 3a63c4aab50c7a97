// Package protection keeps storage objects that are being deleted until nothing uses them: claims while a pod does,
// volumes while they are bound, volume attributes classes while a claim or a volume names them
// (https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection).
//
// It owns the finalizers kubernetes.io/{pvc,pv,vac}-protection and nothing else; admission sets them on new objects.
package protection

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

var classes = client.Resource[*storagev1.VolumeAttributesClass]{Name: "volumeattributesclasses.storage.k8s.io"}

// Loops are the three protection controllers. Their keys are the objects that they protect.
func Loops() []reconcile.Loop {
	return []reconcile.Loop{
		loop("pvc-protection-controller", client.PersistentVolumeClaims, "kubernetes.io/pvc-protection", claimInUse,
			reconcile.Input{Resource: client.Pods.Name, Keys: released}),
		loop("pv-protection-controller", client.PersistentVolumes, "kubernetes.io/pv-protection",
			func(_ store.Snapshot, pv *corev1.PersistentVolume) bool { return pv.Status.Phase == corev1.VolumeBound }),
		loop("volumeattributesclass-protection-controller", classes, "kubernetes.io/vac-protection", classInUse,
			reconcile.Input{Resource: client.PersistentVolumeClaims.Name, Keys: dropped},
			reconcile.Input{Resource: client.PersistentVolumes.Name, Keys: dropped}),
	}
}

// loop sees to a finalizer: objects that live have it, and those that are being deleted until they are no longer used.
func loop[T api.Object](name string, r client.Resource[T], finalizer string, used func(store.Snapshot, T) bool, inputs ...reconcile.Input) reconcile.Loop {
	return reconcile.Loop{
		Name:    name,
		Inputs:  append([]reconcile.Input{{Resource: r.Name}}, inputs...),
		Outputs: []reconcile.Output{{Resource: r.Name, Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			have, ok := r.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			finalizers := slices.Clone(have.GetFinalizers())
			protected, deleting := slices.Contains(finalizers, finalizer), have.GetDeletionTimestamp() != nil
			switch {
			case !protected && !deleting:
				finalizers = append(finalizers, finalizer)
			case protected && deleting && !used(s, have):
				finalizers = slices.DeleteFunc(finalizers, func(f string) bool { return f == finalizer })
			default:
				return reconcile.Plan{}, nil
			}
			obj := have.DeepCopyObject().(T)
			obj.SetFinalizers(finalizers)
			return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: r.Name, Object: obj}}}, nil
		},
	}
}

// released gives the claims of a pod that may use them no longer.
func released(_ store.Snapshot, ev store.Event) []reconcile.Key {
	pod := ev.Entry.Object.(*corev1.Pod)
	if !ev.Deleted && !shutDown(pod) && pod.Spec.NodeName != "" {
		return nil
	}
	var keys []reconcile.Key
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			keys = append(keys, reconcile.Key{Namespace: pod.Namespace, Name: v.PersistentVolumeClaim.ClaimName})
		case v.Ephemeral != nil:
			keys = append(keys, reconcile.Key{Namespace: pod.Namespace, Name: pod.Name + "-" + v.Name})
		}
	}
	return keys
}

// shutDown tells a pod of which the node has unmounted everything, or that was deleted by force.
func shutDown(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp != nil && pod.DeletionGracePeriodSeconds != nil && *pod.DeletionGracePeriodSeconds == 0
}

// claimInUse tells whether a pod that has a node uses a claim. Others cannot start any more once it is being deleted.
func claimInUse(s store.Snapshot, pvc *corev1.PersistentVolumeClaim) bool {
	for pod := range client.Pods.List(s, pvc.Namespace) {
		if pod.Spec.NodeName == "" {
			continue
		}
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == pvc.Name {
				return true
			}
			// The claim of an ephemeral volume goes with its pod: waiting for each other would last for ever.
			if v.Ephemeral != nil && pod.Name+"-"+v.Name == pvc.Name && metav1.IsControlledBy(pvc, pod) && !shutDown(pod) {
				return true
			}
		}
	}
	return false
}

// classesOf are the volume attributes classes that a claim or a volume names.
func classesOf(obj any) (names []string) {
	add := func(name *string) {
		if name != nil && *name != "" && !slices.Contains(names, *name) {
			names = append(names, *name)
		}
	}
	switch o := obj.(type) {
	case *corev1.PersistentVolumeClaim:
		add(o.Spec.VolumeAttributesClassName)
		add(o.Status.CurrentVolumeAttributesClassName)
		if m := o.Status.ModifyVolumeStatus; m != nil {
			add(&m.TargetVolumeAttributesClassName)
		}
	case *corev1.PersistentVolume:
		add(o.Spec.VolumeAttributesClassName)
	}
	return names
}

// dropped gives the classes that a claim or a volume names no longer.
func dropped(_ store.Snapshot, ev store.Event) []reconcile.Key {
	before, now := ev.Prev, []string(nil)
	if !ev.Deleted {
		now = classesOf(ev.Entry.Object)
	} else if before == nil {
		before = ev.Entry
	}
	if before == nil {
		return nil
	}
	var keys []reconcile.Key
	for _, name := range classesOf(before.Object) {
		if !slices.Contains(now, name) {
			keys = append(keys, reconcile.Key{Name: name})
		}
	}
	return keys
}

func classInUse(s store.Snapshot, class *storagev1.VolumeAttributesClass) bool {
	for pvc := range client.PersistentVolumeClaims.List(s, "") {
		if slices.Contains(classesOf(pvc), class.Name) {
			return true
		}
	}
	for pv := range client.PersistentVolumes.List(s, "") {
		if slices.Contains(classesOf(pv), class.Name) {
			return true
		}
	}
	return false
}

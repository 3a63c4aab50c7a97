package service

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// sliceManager is who makes the slices that follow pods by themselves.
const sliceManager = "endpointslice-controller.k8s.io"

// Leaving waits until every EndpointSlice that names a pod shows that it ends, and returns the revision at which that was so. Once Loop
// has caught up with it, new connections do not come to the pod any more, unless there is no other. For a pod that no Service has it
// returns at once, and led is false. Slices that somebody else keeps are not waited for.
func Leaving(ctx context.Context, c client.Reader, pod *corev1.Pod) (rev store.Revision, led bool, err error) {
	s := c.Snapshot()
	led, ends := named(s, pod)
	if ends {
		return s.Revision(), led, nil
	}
	cursor, err := c.Cursor(s.Revision(), client.EndpointSlices.Name)
	if err != nil {
		return 0, led, err
	}
	for !ends {
		if _, err := cursor.Next(ctx); err != nil {
			return 0, led, err
		}
		s = c.Snapshot()
		_, ends = named(s, pod)
	}
	return s.Revision(), led, nil
}

// named tells whether a slice shows a pod, and whether all that do show it as one that ends.
func named(s store.Snapshot, pod *corev1.Pod) (led, ends bool) {
	ends = true
	for slice := range client.EndpointSlices.List(s, pod.Namespace) {
		if slice.Labels[discoveryv1.LabelManagedBy] != sliceManager {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if e.TargetRef == nil || e.TargetRef.UID != pod.UID {
				continue
			}
			led = true
			ends = ends && e.Conditions.Terminating != nil && *e.Conditions.Terminating
		}
	}
	return led, ends
}

package webhook

import (
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// A webhook may select the pods, nodes or endpoints that its own backend consists of. When that backend is gone, nothing could bring
// it back: each write that would is put to the webhook, which does not answer. needed tells such writes, and lets them pass.
//
// It takes all of: the webhook is a service of this cluster, nobody answered there who could prove to be the webhook (a refusal or an
// error that it answers with is an answer), the writer is a part of the system and not a user, and the write is either one of the system's
// bookkeeping or makes the backend itself.
func (w *Webhooks) needed(h *hook, r *admission.Request, call *callError) bool {
	if !call.unreached || call.cancelled() || h.target.Service == nil || !bySystem(r) || r.DryRun {
		return false
	}
	if !bookkeeping(r) && !ofBackend(r, *h.target.Service) {
		return false
	}
	if w.quiet.first(h.id, w.cfg.Now()) {
		w.cfg.Log.Warn("a webhook that cannot be reached selects what its own backend needs: the system's own writes for it pass",
			"webhook", h.name, "configuration", h.configuration, "service", h.target.Service.Namespace+"/"+h.target.Service.Name,
			"resource", r.Kind.Name(), "namespace", r.Namespace, "name", r.ObjectName(), "error", call)
		if w.cfg.Warn != nil {
			w.cfg.Warn(h.owner, "WebhookBypassed", fmt.Sprintf("webhook %q cannot be reached and selects what its own backend needs: the system's own writes for it pass (service %q in namespace %q; take the namespace out by namespaceSelector)",
				h.name, h.target.Service.Name, h.target.Service.Namespace))
		}
	}
	return true
}

// bySystem tells a part of this program, and the agents of other nodes, from users.
func bySystem(r *admission.Request) bool {
	if r.Local {
		return true
	}
	for _, g := range r.User.Groups {
		if g == client.GroupNodes {
			return true
		}
	}
	return false
}

// books are the resources, beside all status, in which the system only writes down what is so.
var books = map[string]bool{
	"nodes": true, "events": true, "events.events.k8s.io": true, "leases.coordination.k8s.io": true, "endpoints": true,
	"endpointslices.discovery.k8s.io": true, "csinodes.storage.k8s.io": true, "volumeattachments.storage.k8s.io": true,
	"persistentvolumes": true, "ipaddresses.networking.k8s.io": true,
}

// bookkeeping tells writes that record what the cluster has observed or decided, and make nothing that a user asked for. Pods that
// are removed free the room that the backend may be waiting for.
func bookkeeping(r *admission.Request) bool {
	switch name := r.Kind.Name(); {
	case books[name]:
		return true
	case name == "pods":
		return r.Subresource == "status" || r.Subresource == "binding" || r.Subresource == "" && r.Operation == admission.Delete
	}
	return r.Subresource == "status"
}

// ofBackend tells writes that make the backend: those in the namespace of its service, or for that namespace. Of pods and of what
// makes pods only those count that the service selects, so that a webhook which guards pods still guards all others.
func ofBackend(r *admission.Request, s backend.Service) bool {
	if r.Kind.Name() == "namespaces" {
		return r.ObjectName() == s.Namespace
	}
	if !r.Kind.Namespaced || r.Namespace != s.Namespace {
		return false
	}
	if r.Operation == admission.Delete || r.Object == nil {
		return true
	}
	made, makes := podLabels(r.Object)
	if !makes {
		return true
	}
	return selected(r.Snapshot, s, made)
}

func selected(snap store.Snapshot, s backend.Service, pod labels.Set) bool {
	svc, ok := client.Services.Get(snap, s.Namespace, s.Name)
	return ok && len(svc.Spec.Selector) > 0 && labels.SelectorFromSet(svc.Spec.Selector).Matches(pod)
}

// podLabels are the labels of a pod, or of the pods that a workload makes.
func podLabels(obj api.Object) (labels.Set, bool) {
	switch o := obj.(type) {
	case *corev1.Pod:
		return o.Labels, true
	case *corev1.ReplicationController:
		if o.Spec.Template == nil {
			return nil, true
		}
		return o.Spec.Template.Labels, true
	case *appsv1.ReplicaSet:
		return o.Spec.Template.Labels, true
	case *appsv1.Deployment:
		return o.Spec.Template.Labels, true
	case *appsv1.StatefulSet:
		return o.Spec.Template.Labels, true
	case *appsv1.DaemonSet:
		return o.Spec.Template.Labels, true
	case *batchv1.Job:
		return o.Spec.Template.Labels, true
	case *batchv1.CronJob:
		return o.Spec.JobTemplate.Spec.Template.Labels, true
	}
	return nil, false
}

// explain adds to a failure for a user that the webhook stands in its own way, if it does.
func (w *Webhooks) explain(h *hook, r *admission.Request, call *callError) error {
	if !call.unreached || h.target.Service == nil || !w.selectsItself(h, r) {
		return call
	}
	s := h.target.Service
	return fmt.Errorf("%w (the webhook selects its own backend: service %q in namespace %q cannot be reached, and its pods would have to be admitted by the webhook itself; "+
		"take the namespace out by the webhook's namespaceSelector, or change or delete configuration %q)", call, s.Name, s.Namespace, h.configuration)
}

// selectsItself asks the webhook's own rules about a pod of its backend.
func (w *Webhooks) selectsItself(h *hook, r *admission.Request) bool {
	pods := w.cfg.Registry.ByName(client.Pods.Name)
	svc, ok := client.Services.Get(r.Snapshot, h.target.Service.Namespace, h.target.Service.Name)
	if pods == nil || !ok || len(svc.Spec.Selector) == 0 {
		return false
	}
	probe := &admission.Request{
		Operation: admission.Create, Kind: pods, Namespace: svc.Namespace, Name: svc.Name, Snapshot: r.Snapshot, Now: r.Now,
		Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, Labels: svc.Spec.Selector}},
	}
	_, ok, err := h.match.Match(w.cfg.Registry, probe)
	return ok && err == nil
}

// quiet keeps a warning from being repeated for each write. The zero value is ready; it is safe for concurrent use.
type quiet struct {
	mu   sync.Mutex // guards last
	last map[string]time.Time
}

// quietFor is how long a warning stands for those like it.
const quietFor = time.Minute

// first tells whether a warning is the first in a while.
func (q *quiet) first(id string, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if at, ok := q.last[id]; ok && now.Sub(at) < quietFor {
		return false
	}
	if q.last == nil || len(q.last) >= maxSeries {
		q.last = map[string]time.Time{}
	}
	q.last[id] = now
	return true
}

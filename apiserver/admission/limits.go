package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"coracle.dev/coracle/client"
)

// limitRanger fills in and enforces the limit ranges of a namespace
// (https://kubernetes.io/docs/concepts/policy/limit-range/).
func limitRanger() Plugin {
	return Plugin{
		Name: "LimitRanger",
		Mutate: func(_ context.Context, r *Request) error {
			if r.Operation == Create && r.Is("pods", "") {
				for lr := range client.LimitRanges.List(r.Snapshot, r.Namespace) {
					fillPod(lr, r.Object.(*corev1.Pod))
				}
			}
			return nil
		},
		Validate: func(_ context.Context, r *Request) error {
			pods := r.Is("pods", "") && r.Operation == Create || r.Is("pods", "resize") && r.Operation == Update
			claims := r.Is("persistentvolumeclaims", "") && (r.Operation == Create || r.Operation == Update)
			if !pods && !claims || r.Old != nil && r.Old.GetDeletionTimestamp() != nil {
				return nil
			}
			for lr := range client.LimitRanges.List(r.Snapshot, r.Namespace) {
				var errs []error
				if pods {
					errs = checkPod(lr, r.Object.(*corev1.Pod))
				} else {
					errs = checkClaim(lr, r.Object.(*corev1.PersistentVolumeClaim))
				}
				if err := utilerrors.NewAggregate(errs); err != nil {
					return Forbidden(r, err)
				}
			}
			return nil
		},
	}
}

// fillPod sets the requests and limits that containers lack, and notes what it set.
func fillPod(lr *corev1.LimitRange, pod *corev1.Pod) {
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	for i := range lr.Spec.Limits {
		if l := &lr.Spec.Limits[i]; l.Type == corev1.LimitTypeContainer {
			for k, v := range l.DefaultRequest {
				requests[k] = v.DeepCopy()
			}
			for k, v := range l.Default {
				limits[k] = v.DeepCopy()
			}
		}
	}
	var notes []string
	for i := range pod.Spec.Containers {
		notes = append(notes, fillContainer(&pod.Spec.Containers[i], "container", requests, limits)...)
	}
	for i := range pod.Spec.InitContainers {
		notes = append(notes, fillContainer(&pod.Spec.InitContainers[i], "init container", requests, limits)...)
	}
	if len(notes) > 0 {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations["kubernetes.io/limit-ranger"] = "LimitRanger plugin set: " + strings.Join(notes, "; ")
	}
}

func fillContainer(c *corev1.Container, what string, requests, limits corev1.ResourceList) (notes []string) {
	setLimits := fillList(&c.Resources.Limits, limits)
	setRequests := fillList(&c.Resources.Requests, requests)
	if len(setRequests) > 0 {
		notes = append(notes, strings.Join(setRequests, ", ")+" request for "+what+" "+c.Name)
	}
	if len(setLimits) > 0 {
		notes = append(notes, strings.Join(setLimits, ", ")+" limit for "+what+" "+c.Name)
	}
	return notes
}

func fillList(into *corev1.ResourceList, defaults corev1.ResourceList) (set []string) {
	for k, v := range defaults {
		if _, ok := (*into)[k]; ok {
			continue
		}
		if *into == nil {
			*into = corev1.ResourceList{}
		}
		(*into)[k] = v.DeepCopy()
		set = append(set, string(k))
	}
	slices.Sort(set)
	return set
}

// checkPod enforces the limits of containers and of the whole pod.
func checkPod(lr *corev1.LimitRange, pod *corev1.Pod) (errs []error) {
	for i := range lr.Spec.Limits {
		l := &lr.Spec.Limits[i]
		switch l.Type {
		case corev1.LimitTypeContainer:
			for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
				for j := range list {
					errs = append(errs, checkItem(l, list[j].Resources.Requests, list[j].Resources.Limits)...)
				}
			}
		case corev1.LimitTypePod:
			requests := podTotal(pod, func(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Requests })
			limits := podTotal(pod, func(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Limits })
			errs = append(errs, checkItem(l, requests, limits)...)
		}
	}
	return errs
}

// podTotal is what a pod needs at once: the sum of its containers, or the greatest init container. A resource
// that some container leaves out has no total.
func podTotal(pod *corev1.Pod, of func(*corev1.ResourceRequirements) corev1.ResourceList) corev1.ResourceList {
	total := corev1.ResourceList{}
	seen := map[corev1.ResourceName]int{}
	for i := range pod.Spec.Containers {
		for k, v := range of(&pod.Spec.Containers[i].Resources) {
			sum := total[k]
			sum.Add(v)
			total[k] = sum
			seen[k]++
		}
	}
	for k, n := range seen {
		if n < len(pod.Spec.Containers) {
			delete(total, k)
		}
	}
	for i := range pod.Spec.InitContainers {
		for k, v := range of(&pod.Spec.InitContainers[i].Resources) {
			if have, ok := total[k]; !ok || v.Cmp(have) > 0 {
				total[k] = v.DeepCopy()
			}
		}
	}
	return total
}

func checkItem(l *corev1.LimitRangeItem, requests, limits corev1.ResourceList) (errs []error) {
	for k, v := range l.Min {
		errs = appendError(errs, checkMin(l.Type, k, v, requests, limits))
	}
	for k, v := range l.Max {
		errs = appendError(errs, checkMax(l.Type, k, v, requests, limits))
	}
	for k, v := range l.MaxLimitRequestRatio {
		errs = appendError(errs, checkRatio(l.Type, k, v, requests, limits))
	}
	return errs
}

func appendError(errs []error, err error) []error {
	if err != nil {
		errs = append(errs, err)
	}
	return errs
}

func checkMin(t corev1.LimitType, k corev1.ResourceName, least resource.Quantity, requests, limits corev1.ResourceList) error {
	req, hasReq := requests[k]
	lim, hasLim := limits[k]
	switch {
	case !hasReq:
		return fmt.Errorf("minimum %s usage per %s is %s.  No request is specified", k, t, least.String())
	case req.Cmp(least) < 0:
		return fmt.Errorf("minimum %s usage per %s is %s, but request is %s", k, t, least.String(), req.String())
	case hasLim && lim.Cmp(least) < 0:
		return fmt.Errorf("minimum %s usage per %s is %s, but limit is %s", k, t, least.String(), lim.String())
	}
	return nil
}

func checkMax(t corev1.LimitType, k corev1.ResourceName, most resource.Quantity, requests, limits corev1.ResourceList) error {
	req, hasReq := requests[k]
	lim, hasLim := limits[k]
	switch {
	case !hasLim:
		return fmt.Errorf("maximum %s usage per %s is %s.  No limit is specified", k, t, most.String())
	case lim.Cmp(most) > 0:
		return fmt.Errorf("maximum %s usage per %s is %s, but limit is %s", k, t, most.String(), lim.String())
	case hasReq && req.Cmp(most) > 0:
		return fmt.Errorf("maximum %s usage per %s is %s, but request is %s", k, t, most.String(), req.String())
	}
	return nil
}

func checkRatio(t corev1.LimitType, k corev1.ResourceName, most resource.Quantity, requests, limits corev1.ResourceList) error {
	req, lim := requests[k], limits[k]
	if req.IsZero() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", k, t, most.String())
	}
	if lim.IsZero() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", k, t, most.String())
	}
	ratio := lim.AsApproximateFloat64() / req.AsApproximateFloat64()
	if ratio > most.AsApproximateFloat64() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but provided ratio is %f", k, t, most.String(), ratio)
	}
	return nil
}

// checkClaim enforces the limits of volume claims.
func checkClaim(lr *corev1.LimitRange, pvc *corev1.PersistentVolumeClaim) (errs []error) {
	for i := range lr.Spec.Limits {
		l := &lr.Spec.Limits[i]
		if l.Type != corev1.LimitTypePersistentVolumeClaim {
			continue
		}
		for k, least := range l.Min {
			errs = appendError(errs, checkMin(l.Type, k, least, pvc.Spec.Resources.Requests, nil))
		}
		for k, most := range l.Max {
			req, ok := pvc.Spec.Resources.Requests[k]
			switch {
			case !ok:
				errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s.  No request is specified", k, l.Type, most.String()))
			case req.Cmp(most) > 0:
				errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s, but request is %s", k, l.Type, most.String(), req.String()))
			}
		}
	}
	return errs
}

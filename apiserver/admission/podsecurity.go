package admission

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	psapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
)

// Bounds of the look at the pods that a namespace has when its level is raised.
const (
	maxPodsChecked  = 3000
	podCheckTimeout = time.Second
)

// privilegedPolicy is that of a namespace without labels: nothing is enforced, audited or warned of.
var privilegedPolicy = func() psapi.Policy {
	all := psapi.LevelVersion{Level: psapi.LevelPrivileged, Version: psapi.LatestVersion()}
	return psapi.Policy{Enforce: all, Audit: all, Warn: all}
}()

// podChecks evaluates the Pod Security Standards; they are gathered at the first pod in a namespace that asks for them.
var podChecks = sync.OnceValues(func() (policy.Evaluator, error) {
	return policy.NewEvaluator(policy.DefaultChecks(), nil)
})

// podSecurity holds namespaces to the level of the Pod Security Standards that their labels name
// (https://kubernetes.io/docs/concepts/security/pod-security-admission/): pods that violate the enforced level are
// refused, and those that violate the levels of warn and audit, as well as what makes such pods, are let through with
// a warning or a mark in the audit log. Nothing is exempt. A namespace without such labels costs one look at its labels.
func podSecurity() Plugin {
	return Plugin{Name: "PodSecurity", Validate: func(ctx context.Context, r *Request) error {
		if r.Operation != Create && r.Operation != Update {
			return nil
		}
		switch r.Kind.Name() {
		case "namespaces":
			return securityOfNamespace(ctx, r)
		case "pods":
			return securityOfPod(r)
		}
		return securityOfTemplate(r)
	}}
}

// securityOfNamespace refuses labels that cannot be read, and warns of the pods that a new level would not let in.
func securityOfNamespace(ctx context.Context, r *Request) error {
	if r.Subresource != "" {
		return nil
	}
	ns := r.Object.(*corev1.Namespace)
	now, errs := psapi.PolicyToEvaluate(ns.Labels, privilegedPolicy)
	invalid := func() error {
		return apierrors.NewInvalid(schema.GroupKind{Kind: "Namespace"}, ns.Name, errs)
	}
	if r.Operation == Create {
		if len(errs) > 0 {
			return invalid()
		}
		return nil
	}
	was, oldErrs := psapi.PolicyToEvaluate(r.Old.(*corev1.Namespace).Labels, privilegedPolicy)
	if len(errs) > 0 && (len(oldErrs) == 0 || !reflect.DeepEqual(errs, oldErrs)) {
		return invalid()
	}
	if now.Enforce == was.Enforce || now.Enforce.Level == psapi.LevelPrivileged {
		return nil
	}
	if now.Enforce.Version == was.Enforce.Version && psapi.CompareLevels(now.Enforce.Level, was.Enforce.Level) < 1 {
		return nil
	}
	warnings, err := violatingPods(ctx, r, ns.Name, now.Enforce)
	for _, w := range warnings {
		r.Warn(w)
	}
	return err
}

// violatingPods words what a namespace's pods violate of a new level, pods with the same faults together.
func violatingPods(ctx context.Context, r *Request, namespace string, enforce psapi.LevelVersion) ([]string, error) {
	checks, err := podChecks()
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	ctx, cancel := context.WithTimeout(ctx, podCheckTimeout)
	defer cancel()
	type culprits struct {
		first string
		count int
	}
	pods := onePerController(r, namespace)
	found := map[string]culprits{}
	checked := 0
	for _, pod := range pods[:min(len(pods), maxPodsChecked)] {
		checked++
		if result := policy.AggregateCheckResults(checks.EvaluatePod(enforce, &pod.ObjectMeta, &pod.Spec)); !result.Allowed {
			c := found[result.ForbiddenReason()]
			if c.count == 0 || pod.Name < c.first {
				c.first = pod.Name
			}
			c.count++
			found[result.ForbiddenReason()] = c
		}
		if ctx.Err() != nil {
			break
		}
	}
	var faults []string
	for reason, c := range found {
		switch c.count {
		case 1:
			faults = append(faults, c.first+": "+reason)
		case 2:
			faults = append(faults, c.first+" (and 1 other pod): "+reason)
		default:
			faults = append(faults, fmt.Sprintf("%s (and %d other pods): %s", c.first, c.count-1, reason))
		}
	}
	slices.Sort(faults)
	var out []string
	if checked < len(pods) {
		out = append(out, fmt.Sprintf("new PodSecurity enforce level only checked against the first %d of %d existing pods", checked, len(pods)))
	}
	if len(faults) > 0 {
		out = append(out, fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", namespace, enforce.String()))
	}
	return append(out, faults...), nil
}

// onePerController lists a namespace's pods, those of a controller behind its first one last: they are likely the same.
func onePerController(r *Request, namespace string) []*corev1.Pod {
	var first, more []*corev1.Pod
	seen := map[types.UID]bool{}
	for pod := range client.Pods.List(r.Snapshot, namespace) {
		if owner := metav1.GetControllerOfNoCopy(pod); owner != nil {
			if seen[owner.UID] {
				more = append(more, pod)
				continue
			}
			seen[owner.UID] = true
		}
		first = append(first, pod)
	}
	return append(first, more...)
}

// unrelatedToSecurity are the subresources of pods that do not carry a pod, or change nothing of its spec.
var unrelatedToSecurity = []string{"exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"}

func securityOfPod(r *Request) error {
	if slices.Contains(unrelatedToSecurity, r.Subresource) {
		return nil
	}
	p, errs, ok := securityPolicy(r)
	if !ok {
		return apierrors.NewInternalError(fmt.Errorf("failed to lookup namespace %q", r.Namespace))
	}
	if len(errs) == 0 && p.FullyPrivileged() {
		r.AddAnnotation(psapi.AuditAnnotationPrefix+psapi.EnforcedPolicyAnnotationKey, "privileged:latest")
		return nil
	}
	pod, ok := r.Object.(*corev1.Pod)
	if !ok {
		return apierrors.NewBadRequest("failed to decode pod")
	}
	if old, ok := r.Old.(*corev1.Pod); ok && r.Operation == Update && !changesSecurity(pod, old) {
		return nil
	}
	return evaluatePod(r, p, errs, &pod.ObjectMeta, &pod.Spec, true)
}

// securityOfTemplate warns of what makes pods that would be refused. It refuses nothing itself.
func securityOfTemplate(r *Request) error {
	if r.Subresource != "" {
		return nil
	}
	meta, spec := podTemplate(r.Object)
	if spec == nil {
		return nil
	}
	p, errs, ok := securityPolicy(r)
	if !ok {
		r.AddAnnotation(psapi.AuditAnnotationPrefix+"error", fmt.Sprintf("failed to lookup namespace %q", r.Namespace))
		return nil
	}
	if len(errs) == 0 && p.Warn.Level == psapi.LevelPrivileged && p.Audit.Level == psapi.LevelPrivileged {
		return nil
	}
	return evaluatePod(r, p, errs, meta, spec, false)
}

// podTemplate gives what an object makes its pods of, nil if it makes none.
func podTemplate(obj api.Object) (*metav1.ObjectMeta, *corev1.PodSpec) {
	var t *corev1.PodTemplateSpec
	switch o := obj.(type) {
	case *appsv1.ReplicaSet:
		t = &o.Spec.Template
	case *appsv1.Deployment:
		t = &o.Spec.Template
	case *appsv1.DaemonSet:
		t = &o.Spec.Template
	case *appsv1.StatefulSet:
		t = &o.Spec.Template
	case *batchv1.Job:
		t = &o.Spec.Template
	case *batchv1.CronJob:
		t = &o.Spec.JobTemplate.Spec.Template
	case *corev1.ReplicationController:
		t = o.Spec.Template
	case *corev1.PodTemplate:
		t = &o.Template
	}
	if t == nil {
		return nil, nil
	}
	return &t.ObjectMeta, &t.Spec
}

// securityPolicy reads the labels of the request's namespace. Labels that cannot be read give the strictest level.
func securityPolicy(r *Request) (psapi.Policy, field.ErrorList, bool) {
	ns, ok := client.Namespaces.Get(r.Snapshot, "", r.Namespace)
	if !ok {
		return privilegedPolicy, nil, false
	}
	for key := range ns.Labels {
		if strings.HasPrefix(key, psapi.AuditAnnotationPrefix) {
			p, errs := psapi.PolicyToEvaluate(ns.Labels, privilegedPolicy)
			return p, errs, true
		}
	}
	return privilegedPolicy, nil, true
}

// evaluatePod judges a pod, or the template of one, which is never refused.
func evaluatePod(r *Request, p psapi.Policy, errs field.ErrorList, meta *metav1.ObjectMeta, spec *corev1.PodSpec, enforce bool) error {
	checks, err := podChecks()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	results := map[psapi.LevelVersion]policy.AggregateCheckResult{}
	judge := func(lv psapi.LevelVersion) policy.AggregateCheckResult {
		result, ok := results[lv]
		if !ok {
			result = policy.AggregateCheckResults(checks.EvaluatePod(lv, meta, spec))
			results[lv] = result
		}
		return result
	}
	annotate := func(key, value string) { r.AddAnnotation(psapi.AuditAnnotationPrefix+key, value) }
	if err := errs.ToAggregate(); err != nil {
		annotate("error", fmt.Sprintf("Failed to parse policy: %v", err))
	}
	var refusal error
	if enforce {
		annotate(psapi.EnforcedPolicyAnnotationKey, p.Enforce.String())
		if result := judge(p.Enforce); !result.Allowed {
			refusal = Forbidden(r, fmt.Errorf("violates PodSecurity %q: %s", p.Enforce.String(), result.ForbiddenDetail()))
		}
	}
	if result := judge(p.Audit); !result.Allowed {
		annotate(psapi.AuditViolationsAnnotationKey, wouldViolate(p.Audit, result))
	}
	if refusal != nil {
		return refusal
	}
	if result := judge(p.Warn); !result.Allowed {
		r.Warn(wouldViolate(p.Warn, result))
	}
	return nil
}

func wouldViolate(lv psapi.LevelVersion, result policy.AggregateCheckResult) string {
	return fmt.Sprintf("would violate PodSecurity %q: %s", lv.String(), result.ForbiddenDetail())
}

// changesSecurity tells whether an update touches what the standards look at: of what can be changed in a pod, images and
// new ephemeral containers.
func changesSecurity(pod, old *corev1.Pod) bool {
	images := func(a, b corev1.Container) bool { return a.Image == b.Image }
	if !slices.EqualFunc(pod.Spec.Containers, old.Spec.Containers, images) ||
		!slices.EqualFunc(pod.Spec.InitContainers, old.Spec.InitContainers, images) {
		return true
	}
	for i := range pod.Spec.EphemeralContainers {
		c := &pod.Spec.EphemeralContainers[i]
		if !slices.ContainsFunc(old.Spec.EphemeralContainers, func(o corev1.EphemeralContainer) bool {
			return o.Name == c.Name && o.Image == c.Image
		}) {
			return true
		}
	}
	return false
}

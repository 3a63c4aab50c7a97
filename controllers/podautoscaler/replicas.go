package podautoscaler

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcehelpers "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/reconcile/podstate"
)

// tolerances are how far below and above 1 a ratio of usage to target may be without a change.
type tolerances struct{ down, up float64 }

func (t tolerances) within(ratio float64) bool { return 1-t.down <= ratio && ratio <= 1+t.up }

// tolerances are those of the cluster, or of the autoscaler where it has its own (KEP-4951).
func (p *pass) tolerances() tolerances {
	t := tolerances{p.tuning.Tolerance, p.tuning.Tolerance}
	b := p.hpa.Spec.Behavior
	if b == nil {
		return t
	}
	if b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
		t.down = b.ScaleDown.Tolerance.AsApproximateFloat64()
	}
	if b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
		t.up = b.ScaleUp.Tolerance.AsApproximateFloat64()
	}
	return t
}

// gauge computes replicas from one metric that each pod has.
type gauge struct {
	pods    []*corev1.Pod
	samples map[string]sample // by pod; shared, not to be changed
	// resource is "" for metrics that are none.
	resource   corev1.ResourceName
	now        time.Time
	tuning     Tuning
	tolerances tolerances
	current    int32
}

// groups are the pods by what their samples are worth.
type groups struct {
	ready            int
	unready, missing []string
	// used are the samples that count, by pod, with those of pods that nobody knows (they just went).
	used map[string]int64
}

// group sorts the pods. Pods that end are left out; those that are not ready have a sample that says nothing about load.
func (g *gauge) group() (groups, error) {
	var out groups
	if len(g.pods) == 0 {
		return out, errors.New("no pods returned by selector while calculating replica count")
	}
	out.used = make(map[string]int64, len(g.samples))
	for name, s := range g.samples {
		out.used[name] = s.value
	}
	for _, pod := range g.pods {
		s, found := g.samples[pod.Name]
		switch {
		case pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed:
			delete(out.used, pod.Name)
		case pod.Status.Phase == corev1.PodPending:
			delete(out.used, pod.Name)
			out.unready = append(out.unready, pod.Name)
		case !found:
			out.missing = append(out.missing, pod.Name)
		case g.resource == corev1.ResourceCPU && g.settling(pod, s):
			delete(out.used, pod.Name)
			out.unready = append(out.unready, pod.Name)
		default:
			out.ready++
		}
	}
	if len(out.used) == 0 {
		return out, errors.New("did not receive metrics for targeted pods (pods might be unready)")
	}
	return out, nil
}

// settling tells whether a pod's CPU use may still be that of its start: while it is young, until it is ready and a whole
// window was measured since; later, if it has never been ready.
func (g *gauge) settling(pod *corev1.Pod, s sample) bool {
	ready := podstate.Condition(pod, corev1.PodReady)
	if ready == nil || pod.Status.StartTime == nil {
		return true
	}
	not := ready.Status == corev1.ConditionFalse
	if pod.Status.StartTime.Add(g.tuning.CPUInitialization).After(g.now) {
		return not || s.at.Before(ready.LastTransitionTime.Add(s.window))
	}
	return not && pod.Status.StartTime.Add(g.tuning.InitialReadiness).After(ready.LastTransitionTime.Time)
}

// byValue wants target (in thousandths) on the mean over the pods. usage is the mean that is.
func (g *gauge) byValue(target int64) (replicas int32, usage int64, err error) {
	pods, err := g.group()
	if err != nil {
		return 0, 0, err
	}
	usage = mean(pods.used)
	ratio := func() float64 { return float64(mean(pods.used)) / float64(target) }
	replicas, err = g.settle(&pods, func() (float64, error) { return ratio(), nil }, func(string) int64 { return target })
	return replicas, usage, err
}

// byUtilization wants target per cent of what the pods, or the containers of that name, request. utilization and usage are the means that
// are, the one in per cent and the other in thousandths.
func (g *gauge) byUtilization(target int32, container string) (replicas, utilization int32, usage int64, err error) {
	pods, err := g.group()
	if err != nil {
		return 0, 0, 0, err
	}
	requests := make(map[string]int64, len(g.pods))
	for _, pod := range g.pods {
		if requests[pod.Name], err = request(pod, container, g.resource); err != nil {
			return 0, 0, 0, err
		}
	}
	ratio := func() (float64, error) {
		use, of, n := int64(0), int64(0), int64(0)
		for name, value := range pods.used {
			if r, ok := requests[name]; ok {
				use, of, n = use+value, of+r, n+1
			}
		}
		if of == 0 {
			return 0, errors.New("no metrics returned matched known pods")
		}
		utilization, usage = int32(use*100/of), use/n
		return float64(utilization) / float64(target), nil
	}
	if _, err = ratio(); err != nil {
		return 0, 0, 0, err
	}
	is, used := utilization, usage
	full := int64(max(100, target))
	replicas, err = g.settle(&pods, ratio, func(pod string) int64 { return requests[pod] * full / 100 })
	return replicas, is, used, err
}

// settle turns a ratio of usage to target into replicas. Pods whose use is not known are supposed to use
// what speaks against a change: nothing on the way up, and what full says on the way down.
func (g *gauge) settle(pods *groups, measure func() (float64, error), full func(pod string) int64) (int32, error) {
	ratio, err := measure()
	if err != nil {
		return 0, err
	}
	up := len(pods.unready) > 0 && ratio > 1
	if !up && len(pods.missing) == 0 {
		if g.tolerances.within(ratio) {
			return g.current, nil
		}
		return toInt32(math.Ceil(ratio * float64(pods.ready))), nil
	}
	pods.used = maps.Clone(pods.used)
	for _, name := range pods.missing {
		switch {
		case ratio < 1:
			pods.used[name] = full(name)
		case ratio > 1:
			pods.used[name] = 0
		}
	}
	if up {
		for _, name := range pods.unready {
			pods.used[name] = 0
		}
	}
	again, err := measure()
	if err != nil {
		return 0, err
	}
	if g.tolerances.within(again) || ratio < 1 && again > 1 || ratio > 1 && again < 1 {
		return g.current, nil
	}
	replicas := toInt32(math.Ceil(again * float64(len(pods.used))))
	if again < 1 && replicas > g.current || again > 1 && replicas < g.current {
		return g.current, nil
	}
	return replicas, nil
}

func mean(used map[string]int64) int64 {
	total := int64(0)
	for _, v := range used {
		total += v
	}
	return total / int64(len(used))
}

// request is what a pod requests of a resource, in thousandths: at the level of the pod where that is set (KEP-2837), else the
// sum over its containers and sidecars; or what the one container does.
func request(pod *corev1.Pod, container string, name corev1.ResourceName) (int64, error) {
	if container == "" && resourcehelpers.IsPodLevelRequestsSet(pod) {
		all := resourcehelpers.PodRequests(pod, resourcehelpers.PodResourcesOptions{})
		r, ok := all[name]
		if !ok {
			return 0, fmt.Errorf("missing pod-level request for %s in Pod %s", name, pod.Name)
		}
		return r.MilliValue(), nil
	}
	total := int64(0)
	count := func(c *corev1.Container) (bool, error) {
		if container != "" && container != c.Name {
			return false, nil
		}
		r, ok := c.Resources.Requests[name]
		if !ok {
			return false, fmt.Errorf("missing request for %s in container %s of Pod %s", name, c.Name, pod.Name)
		}
		total += r.MilliValue()
		return container != "", nil
	}
	for i := range pod.Spec.Containers {
		if found, err := count(&pod.Spec.Containers[i]); found || err != nil {
			return total, err
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if found, err := count(c); found || err != nil {
			return total, err
		}
	}
	if container != "" {
		return 0, fmt.Errorf("container %s not found in Pod %s", container, pod.Name)
	}
	return total, nil
}

// byTotal wants target for one value that all pods work on together.
func (p *pass) byTotal(usage, target int64) (int32, error) {
	ratio := float64(usage) / float64(target)
	if p.current == 0 {
		return toInt32(math.Ceil(ratio)), nil
	}
	if p.tolerances().within(ratio) {
		return p.current, nil
	}
	if len(p.pods) == 0 {
		return 0, errors.New("unable to calculate ready pods: no pods returned by selector while calculating replica count")
	}
	ready := 0
	for _, pod := range p.pods {
		if pod.Status.Phase == corev1.PodRunning && podstate.Ready(pod) {
			ready++
		}
	}
	return toInt32(math.Ceil(ratio * float64(ready))), nil
}

// byShare wants target for each replica's share in one value; average is the share that is (all of it where there are no replicas).
func (p *pass) byShare(usage, target int64) (replicas int32, average int64) {
	have := p.target.scale.Status.Replicas
	replicas = have
	if have == 0 {
		return toInt32(math.Ceil(float64(usage) / float64(target))), usage
	}
	if !p.tolerances().within(float64(usage) / (float64(target) * float64(have))) {
		replicas = toInt32(math.Ceil(float64(usage) / float64(target)))
	}
	if usage == math.MaxInt64 {
		return replicas, usage
	}
	return replicas, int64(math.Ceil(float64(usage) / float64(have)))
}

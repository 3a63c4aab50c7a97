package podautoscaler

import (
	"math"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

// normalize brings what metrics want into the limits of the autoscaler: stabilized over time, not faster than its
// policies, not outside of min and max.
func (p *pass) normalize(wanted int32) int32 {
	up, down := rulesOf(p.hpa.Spec.Behavior, p.tuning)
	stable := p.stabilize(wanted, up, down)
	var replicas int32
	var reason, message string
	if p.hpa.Spec.Behavior == nil {
		replicas, reason, message = p.limit(stable)
	} else {
		replicas, reason, message = p.limitRate(stable, up, down)
	}
	limited := corev1.ConditionTrue
	if replicas == stable {
		limited = corev1.ConditionFalse
	}
	p.set(autoscalingv2.ScalingLimited, limited, reason, "%s", message)
	return replicas
}

// rules are how one direction is scaled.
type rules struct {
	window   time.Duration
	selects  autoscalingv2.ScalingPolicySelect
	policies []autoscalingv2.HPAScalingPolicy
}

// rulesOf reads spec.behavior, which the API has filled with defaults; without it, only the window for scaling down is not empty.
func rulesOf(b *autoscalingv2.HorizontalPodAutoscalerBehavior, t Tuning) (up, down rules) {
	down.window = t.DownscaleStabilization
	if b == nil {
		return up, down
	}
	read := func(from *autoscalingv2.HPAScalingRules, to *rules) {
		if from == nil {
			return
		}
		if w := from.StabilizationWindowSeconds; w != nil {
			to.window = time.Duration(*w) * time.Second
		}
		if from.SelectPolicy != nil {
			to.selects = *from.SelectPolicy
		}
		to.policies = from.Policies
	}
	read(b.ScaleUp, &up)
	read(b.ScaleDown, &down)
	return up, down
}

// stabilize takes the recommendation that moves the target least of those within the windows, and notes the new one.
func (p *pass) stabilize(wanted int32, up, down rules) int32 {
	behaves := p.hpa.Spec.Behavior != nil
	lowest, highest := wanted, wanted
	for _, r := range p.decision.recommendations {
		age := p.now.Sub(r.at)
		if behaves && age < up.window {
			lowest = min(lowest, r.replicas)
		}
		if age < down.window || !behaves && age == down.window {
			highest = max(highest, r.replicas)
		}
	}
	stable := highest
	if behaves {
		stable = min(max(p.current, lowest), highest)
	}
	p.decision.recommendations = remember(p.decision.recommendations, recommendation{wanted, p.now}, max(up.window, down.window))
	switch {
	case stable == wanted:
		p.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ReadyForNewScale", "recommended size matches current size")
	case behaves && wanted >= p.current:
		p.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation")
	default:
		p.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation")
	}
	return stable
}

// remember adds a recommendation and drops those that no window reaches any more. Of equal ones in a row the
// youngest is enough, as any window that has an older one has it too.
func remember(all []recommendation, r recommendation, window time.Duration) []recommendation {
	kept := slices.DeleteFunc(slices.Clone(all), func(o recommendation) bool { return r.at.Sub(o.at) > window })
	if n := len(kept); n > 0 && kept[n-1].replicas == r.replicas {
		kept = kept[:n-1]
	}
	return append(kept, r)
}

const (
	withinRange = "the desired count is within the acceptable range"
	tooFast     = "the desired replica count is increasing faster than the maximum scale rate"
	tooFastDown = "the desired replica count is decreasing faster than the maximum scale rate"
	tooMany     = "the desired replica count is more than the maximum replica count"
	tooFew      = "the desired replica count is less than the minimum replica count"
)

// limit is for autoscalers without behavior: in one turn a target is at most doubled, or becomes 4 if that is more.
func (p *pass) limit(wanted int32) (replicas int32, reason, message string) {
	most, reason, message := p.hpa.Spec.MaxReplicas, "TooManyReplicas", tooMany
	if fastest := toInt32(max(2*float64(p.current), 4)); most > fastest {
		most, reason, message = fastest, "ScaleUpLimit", tooFast
	}
	switch {
	case wanted < p.least:
		return p.least, "TooFewReplicas", tooFew
	case wanted > most:
		return most, reason, message
	}
	return wanted, "DesiredWithinRange", withinRange
}

// limitRate is for autoscalers with behavior: policies say how fast.
func (p *pass) limitRate(wanted int32, up, down rules) (replicas int32, reason, message string) {
	switch {
	case wanted > p.current:
		most, reason, message := p.hpa.Spec.MaxReplicas, "TooManyReplicas", tooMany
		if fastest := max(p.fastestUp(up), p.current); most > fastest {
			most, reason, message = fastest, "ScaleUpLimit", tooFast
		}
		if wanted > most {
			return most, reason, message
		}
	case wanted < p.current:
		least, reason, message := p.least, "TooFewReplicas", tooFew
		if fastest := min(p.fastestDown(down), p.current); least < fastest {
			least, reason, message = fastest, "ScaleDownLimit", tooFastDown
		}
		if wanted < least {
			return least, reason, message
		}
	}
	return wanted, "DesiredWithinRange", withinRange
}

// before is how many replicas there were at the begin of a policy's period, as far as this loop made the difference.
func (p *pass) before(period int32) int32 {
	since := func(all []change) (n int32) {
		for _, c := range all {
			if p.now.Sub(c.at) < time.Duration(period)*time.Second {
				n += c.by
			}
		}
		return n
	}
	return p.current - since(p.ups) + since(p.downs)
}

// fastestUp is how many replicas the policies for scaling up allow.
func (p *pass) fastestUp(r rules) int32 {
	if r.selects == autoscalingv2.DisabledPolicySelect {
		return p.current
	}
	return choose(r, math.MaxInt32, math.MinInt32, r.selects == autoscalingv2.MinChangePolicySelect, func(policy autoscalingv2.HPAScalingPolicy) int32 {
		start := p.before(policy.PeriodSeconds)
		if policy.Type == autoscalingv2.PodsScalingPolicy {
			return toInt32(float64(start) + float64(policy.Value))
		}
		// Rounded up: a small target could never grow otherwise.
		return toInt32(math.Ceil(float64(start) * (1 + float64(policy.Value)/100)))
	})
}

// fastestDown is how many replicas the policies for scaling down leave.
func (p *pass) fastestDown(r rules) int32 {
	if r.selects == autoscalingv2.DisabledPolicySelect {
		return p.current
	}
	return choose(r, math.MaxInt32, math.MinInt32, r.selects != autoscalingv2.MinChangePolicySelect, func(policy autoscalingv2.HPAScalingPolicy) int32 {
		start := p.before(policy.PeriodSeconds)
		if policy.Type == autoscalingv2.PodsScalingPolicy {
			return toInt32(float64(start) - float64(policy.Value))
		}
		return toInt32(float64(start) * (1 - float64(policy.Value)/100))
	})
}

// choose takes the lowest or highest of what the policies say.
func choose(r rules, high, low int32, lowest bool, say func(autoscalingv2.HPAScalingPolicy) int32) int32 {
	out := low
	if lowest {
		out = high
	}
	for _, policy := range r.policies {
		if n := say(policy); lowest {
			out = min(out, n)
		} else {
			out = max(out, n)
		}
	}
	return out
}

// toInt32 rounds toward zero and stays in range.
func toInt32(f float64) int32 {
	switch {
	case math.IsNaN(f):
		return 0
	case f >= math.MaxInt32:
		return math.MaxInt32
	case f <= math.MinInt32:
		return math.MinInt32
	}
	return int32(f)
}

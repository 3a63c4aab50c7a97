package podautoscaler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

func ago(d time.Duration) time.Time { return t0.Add(-d) }

func percentOf(v, period int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: v, PeriodSeconds: period}
}

func podsOf(v, period int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: v, PeriodSeconds: period}
}

// scaling are the rules of one direction, with a window of 0.
func scaling(selects autoscalingv2.ScalingPolicySelect, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	zero := int32(0)
	r := &autoscalingv2.HPAScalingRules{Policies: policies, StabilizationWindowSeconds: &zero}
	if selects != "" {
		r.SelectPolicy = &selects
	}
	return r
}

func windowed(seconds int32) *autoscalingv2.HPAScalingRules {
	return &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &seconds}
}

type behavior = autoscalingv2.HorizontalPodAutoscalerBehavior

// wantedBy is a scene in which an external metric wants so many replicas.
func wantedBy(current, wanted int32) *scene {
	return newScene(current, "").values(int64(wanted)*1000).metric(externalMetric(averageValue("1"))).limits(1, 1000).held()
}

func TestRates(t *testing.T) {
	const least, never = autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect
	for _, c := range []struct {
		name            string
		current, wanted int32
		b               *behavior
		ups, downs      []change
		want            int32
		limited         string
	}{
		{"no rules: 4 at first", 1, 100, nil, nil, nil, 4, "True ScaleUpLimit"},
		{"no rules: twice", 10, 100, nil, nil, nil, 20, "True ScaleUpLimit"},
		{"no rules: down at once", 100, 1, nil, nil, nil, 1, "False DesiredWithinRange"},
		{"no rules: to the maximum", 600, 2000, nil, nil, nil, 1000, "True TooManyReplicas"},
		{"no rules: to the minimum", 600, 0, nil, nil, nil, 1, "True TooFewReplicas"},
		{"defaults: 4 more", 1, 100, &behavior{}, nil, nil, 5, "True ScaleUpLimit"},
		{"defaults: twice", 10, 100, &behavior{}, nil, nil, 20, "True ScaleUpLimit"},
		{"defaults: as wanted", 10, 15, &behavior{}, nil, nil, 15, "False DesiredWithinRange"},
		{"pods", 10, 100, &behavior{ScaleUp: scaling("", podsOf(3, 60))}, nil, nil, 13, "True ScaleUpLimit"},
		{"pods, some are used up", 12, 100, &behavior{ScaleUp: scaling("", podsOf(3, 60))}, []change{{2, ago(59 * time.Second)}}, nil, 13, "True ScaleUpLimit"},
		{"pods, all are used up", 13, 100, &behavior{ScaleUp: scaling("", podsOf(3, 60))}, []change{{3, ago(time.Second)}}, nil, 13, "True ScaleUpLimit"},
		{"pods, more than that was used", 13, 100, &behavior{ScaleUp: scaling("", podsOf(1, 60))}, []change{{3, ago(time.Second)}}, nil, 13, "True ScaleUpLimit"},
		{"pods, of an earlier period", 12, 100, &behavior{ScaleUp: scaling("", podsOf(3, 60))}, []change{{2, ago(60 * time.Second)}}, nil, 15, "True ScaleUpLimit"},
		{"pods, that went in between", 10, 100, &behavior{ScaleUp: scaling("", podsOf(3, 60))}, nil, []change{{2, ago(time.Second)}}, 15, "True ScaleUpLimit"},
		{"per cent, rounded up", 3, 100, &behavior{ScaleUp: scaling("", percentOf(10, 60))}, nil, nil, 4, "True ScaleUpLimit"},
		{"per cent of the begin of the period", 15, 100, &behavior{ScaleUp: scaling("", percentOf(100, 60))}, []change{{5, ago(time.Second)}}, nil, 20, "True ScaleUpLimit"},
		{"the more of two", 10, 100, &behavior{ScaleUp: scaling("", podsOf(3, 60), percentOf(50, 60))}, nil, nil, 15, "True ScaleUpLimit"},
		{"the less of two", 10, 100, &behavior{ScaleUp: scaling(least, podsOf(3, 60), percentOf(50, 60))}, nil, nil, 13, "True ScaleUpLimit"},
		{"never up", 10, 100, &behavior{ScaleUp: scaling(never)}, nil, nil, 10, "True ScaleUpLimit"},
		{"down: all at once", 100, 1, &behavior{ScaleDown: windowed(0)}, nil, nil, 1, "False DesiredWithinRange"},
		{"down: pods", 100, 1, &behavior{ScaleDown: scaling("", podsOf(3, 60))}, nil, nil, 97, "True ScaleDownLimit"},
		{"down: pods, some are used up", 98, 1, &behavior{ScaleDown: scaling("", podsOf(3, 60))}, nil, []change{{2, ago(time.Second)}}, 97, "True ScaleDownLimit"},
		{"down: all are used up", 97, 1, &behavior{ScaleDown: scaling("", podsOf(3, 60))}, nil, []change{{5, ago(time.Second)}}, 97, "True ScaleDownLimit"},
		{"down: per cent", 10, 1, &behavior{ScaleDown: scaling("", percentOf(25, 60))}, nil, nil, 7, "True ScaleDownLimit"},
		{"down: the more of two", 100, 1, &behavior{ScaleDown: scaling("", podsOf(3, 60), percentOf(25, 60))}, nil, nil, 75, "True ScaleDownLimit"},
		{"down: the less of two", 100, 1, &behavior{ScaleDown: scaling(least, podsOf(3, 60), percentOf(25, 60))}, nil, nil, 97, "True ScaleDownLimit"},
		{"never down", 10, 1, &behavior{ScaleDown: scaling(never)}, nil, nil, 10, "True ScaleDownLimit"},
		{"down to the minimum", 10, 0, &behavior{ScaleDown: windowed(0)}, nil, nil, 1, "True TooFewReplicas"},
		{"up to the maximum", 900, 2000, &behavior{}, nil, nil, 1000, "True TooManyReplicas"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := wantedBy(c.current, c.wanted)
			if c.b != nil {
				s.behaves(*c.b)
			}
			s.ups, s.downs = c.ups, c.downs
			d := decide(s.view)
			wants(t, d, c.current, c.want)
			if got := condition(d, autoscalingv2.ScalingLimited); got != c.limited {
				t.Error(got)
			}
		})
	}
}

func TestStabilization(t *testing.T) {
	for _, c := range []struct {
		name            string
		current, wanted int32
		b               *behavior
		past            []recommendation
		want            int32
		able            string
	}{
		{"five minutes hold back", 10, 2, nil, []recommendation{{8, ago(299 * time.Second)}, {4, ago(time.Second)}}, 8, "ScaleDownStabilized"},
		{"five minutes, to the second", 10, 2, nil, []recommendation{{8, ago(300 * time.Second)}}, 8, "ScaleDownStabilized"},
		{"and not longer", 10, 2, nil, []recommendation{{8, ago(301 * time.Second)}}, 2, "ReadyForNewScale"},
		{"never upwards", 10, 18, nil, []recommendation{{5, ago(time.Second)}}, 18, "ReadyForNewScale"},
		{"defaults hold back as long", 10, 2, &behavior{}, []recommendation{{8, ago(299 * time.Second)}}, 8, "ScaleDownStabilized"},
		{"defaults, and not longer", 10, 2, &behavior{}, []recommendation{{8, ago(300 * time.Second)}}, 2, "ReadyForNewScale"},
		{"defaults, upwards", 10, 18, &behavior{}, []recommendation{{5, ago(time.Second)}}, 18, "ReadyForNewScale"},
		{"a window of its own", 10, 2, &behavior{ScaleDown: windowed(60)}, []recommendation{{8, ago(61 * time.Second)}, {4, ago(59 * time.Second)}}, 4, "ScaleDownStabilized"},
		{"no window", 10, 2, &behavior{ScaleDown: windowed(0)}, []recommendation{{8, ago(time.Second)}}, 2, "ReadyForNewScale"},
		{"upwards with a window", 10, 18, &behavior{ScaleUp: windowed(60)}, []recommendation{{12, ago(59 * time.Second)}}, 12, "ScaleUpStabilized"},
		{"upwards, one was lower than what is", 10, 18, &behavior{ScaleUp: windowed(60)}, []recommendation{{5, ago(59 * time.Second)}}, 10, "ScaleUpStabilized"},
		{"a bump on the way down", 10, 6, &behavior{ScaleUp: windowed(60), ScaleDown: windowed(60)}, []recommendation{{12, ago(30 * time.Second)}}, 10, "ScaleDownStabilized"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := wantedBy(c.current, c.wanted)
			if c.b != nil {
				s.behaves(*c.b)
			}
			s.recommendations = c.past
			d := decide(s.view)
			wants(t, d, c.current, c.want)
			able := condition(decision{status: autoscalingv2.HorizontalPodAutoscalerStatus{Conditions: d.unscaled}}, autoscalingv2.AbleToScale)
			if !d.rescale {
				able = condition(d, autoscalingv2.AbleToScale)
			}
			if able != "True "+c.able {
				t.Error(able)
			}
			if last := d.recommendations[len(d.recommendations)-1]; last != (recommendation{c.wanted, t0}) {
				t.Errorf("remembers %v", d.recommendations)
			}
		})
	}
	t.Run("the size at first sight counts", func(t *testing.T) {
		s := wantedBy(10, 2)
		s.recommendations = nil
		d := decide(s.view)
		wants(t, d, 10, 10)
		if !slices.Equal(d.recommendations, []recommendation{{10, t0}, {2, t0}}) {
			t.Errorf("%v", d.recommendations)
		}
	})
}

func TestTolerances(t *testing.T) {
	half, none := amountOf("0.5"), amountOf("0")
	up := func(b *behavior) { b.ScaleUp = &autoscalingv2.HPAScalingRules{Tolerance: half} }
	down := func(b *behavior) {
		b.ScaleDown = &autoscalingv2.HPAScalingRules{Tolerance: none, StabilizationWindowSeconds: new(int32)}
	}
	for _, c := range []struct {
		pods string
		set  func(*behavior)
		want int32
	}{
		{"740 740 740", up, 3}, {"760 760 760", up, 5}, {"440 440 440", up, 3},
		{"490 490 490 490 490", down, 5}, {"400 400 400 400 400", down, 4}, {"540 540 540 540 540", down, 5},
	} {
		var b behavior
		c.set(&b)
		n := int32(len(c.pods)+1) / 4
		s := newScene(n, c.pods).metric(cpu(50)).behaves(b).held()
		wants(t, decide(s.view), n, c.want)
	}
}

// TestRemember: what the windows need is kept, and nothing else.
func TestRemember(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	window := 5 * time.Minute
	var kept, all []recommendation
	for i := range 2000 {
		now := t0.Add(time.Duration(i) * 15 * time.Second)
		next := recommendation{3, now}
		if r.IntN(4) == 0 {
			next.replicas = int32(r.IntN(10))
		}
		kept, all = remember(kept, next, window), append(all, next)
		most := func(list []recommendation) (m int32) {
			for _, o := range list {
				if now.Sub(o.at) <= window {
					m = max(m, o.replicas)
				}
			}
			return m
		}
		if most(kept) != most(all) {
			t.Fatalf("turn %d: %v", i, kept)
		}
		if len(kept) > 21 {
			t.Fatalf("%d are kept", len(kept))
		}
	}
	kept = nil
	for i := range 100 {
		kept = remember(kept, recommendation{3, t0.Add(time.Duration(i) * 15 * time.Second)}, window)
	}
	if len(kept) != 1 {
		t.Errorf("%d of equal ones are kept", len(kept))
	}
}

// TestProperties: in random scenes, the number stays within the limits, grows with the load, and comes to rest under a constant one.
func TestProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 1000 {
		n := int32(1 + r.IntN(20))
		least := int32(1 + r.IntN(5))
		most := least + int32(r.IntN(30))
		load := int64(r.IntN(40000))
		target := int32(10 + r.IntN(140))
		build := func(replicas int32, load int64) *scene {
			words := ""
			for range replicas {
				words += fmt.Sprintf("%d ", load/int64(replicas))
			}
			return newScene(replicas, words).metric(cpu(target)).limits(least, most).held()
		}
		s := build(n, load)
		if r.IntN(2) == 0 {
			b := behavior{ScaleDown: scaling([]autoscalingv2.ScalingPolicySelect{"Max", "Min"}[r.IntN(2)], podsOf(1+int32(r.IntN(5)), 15), percentOf(1+int32(r.IntN(100)), 60))}
			s.behaves(b)
		}
		d := decide(s.view)
		after := d.status.DesiredReplicas
		if n >= least && n <= most && (after < least || after > most) || !d.rescale && after != n {
			t.Fatalf("scene %d: %d replicas become %d, not within %d and %d", i, n, after, least, most)
		}
		if n < least && after != least || n > most && after != most {
			t.Fatalf("scene %d: %d replicas become %d, and should %d to %d", i, n, after, least, most)
		}
		more := build(n, load+int64(r.IntN(20000)))
		more.hpa.Spec.Behavior = s.hpa.Spec.Behavior
		if up := decide(more.view).status.DesiredReplicas; up < after {
			t.Fatalf("scene %d: more load makes %d of %d, less makes %d", i, up, n, after)
		}
		// A load that is shared evenly.
		sizes := []int32{n}
		for range 40 {
			n = decide(build(n, load).view).status.DesiredReplicas
			sizes = append(sizes, n)
		}
		if tail := sizes[20:]; slices.Min(tail) != slices.Max(tail) {
			t.Fatalf("scene %d: load %d, target %d: %v", i, load, target, sizes)
		}
	}
}

// TestRandomScenes: whatever pods there are, nothing breaks, and unknown pods never add to a change.
func TestRandomScenes(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	odd := []string{"", "", "", "/unready", "/pending", "/deleting", "/failed"}
	for range 3000 {
		words := ""
		n := 1 + r.IntN(12)
		for range n {
			use := fmt.Sprint(r.IntN(2000))
			if r.IntN(5) == 0 {
				use = "-"
			}
			words += use + odd[r.IntN(len(odd))] + " "
		}
		s := newScene(int32(n), words).metric(cpu(int32(1+r.IntN(150)))).limits(1, 50).held()
		d := decide(s.view)
		if got := d.status.DesiredReplicas; d.rescale && (got < 1 || got > 50) {
			t.Fatalf("%s: %d", words, got)
		}
		if !d.rescale {
			continue
		}
		// One more that says nothing cannot turn the change around.
		unknown := newScene(int32(n)+1, words+"-").metric(s.hpa.Spec.Metrics...).limits(1, 50).held()
		u := decide(unknown.view)
		if u.rescale && (d.replicas > d.current) != (u.replicas > u.current) && len(s.pods) == countRunning(s.pods) {
			t.Fatalf("%s: %d to %d, and with one unknown %d to %d", words, d.current, d.replicas, u.current, u.replicas)
		}
	}
}

func countRunning(pods []*corev1.Pod) (n int) {
	for _, p := range pods {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			n++
		}
	}
	return n
}

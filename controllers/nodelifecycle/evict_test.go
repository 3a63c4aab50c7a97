package nodelifecycle

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestWhenAPodHasToLeave goes through tolerations: the shortest that matches decides for a taint, the first taint for the pod.
func TestWhenAPodHasToLeave(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	added := metav1.NewTime(now.Add(-10 * time.Second))
	seconds := func(n int64) *int64 { return &n }
	taint := func(key, value string) corev1.Taint {
		return corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffectNoExecute, TimeAdded: &added}
	}
	exists := func(key string, s *int64) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, TolerationSeconds: s}
	}
	undated := taint("b", "")
	undated.TimeAdded = nil
	for name, c := range map[string]struct {
		taints      []corev1.Taint
		tolerations []corev1.Toleration
		in          time.Duration // from now; negative is never
	}{
		"nothing tolerated":            {[]corev1.Taint{taint("a", "")}, nil, 0},
		"for ever":                     {[]corev1.Taint{taint("a", "")}, []corev1.Toleration{exists("a", nil)}, -1},
		"everything for ever":          {[]corev1.Taint{taint("a", ""), taint("b", "")}, []corev1.Toleration{exists("", nil)}, -1},
		"for a while":                  {[]corev1.Taint{taint("a", "")}, []corev1.Toleration{exists("a", seconds(30))}, 20 * time.Second},
		"the shortest decides":         {[]corev1.Taint{taint("a", "")}, []corev1.Toleration{exists("a", seconds(300)), exists("a", seconds(40)), exists("", seconds(60))}, 30 * time.Second},
		"a limit beside none":          {[]corev1.Taint{taint("a", "")}, []corev1.Toleration{exists("a", nil), exists("a", seconds(15))}, 5 * time.Second},
		"the first of two taints":      {[]corev1.Taint{taint("a", ""), taint("b", "")}, []corev1.Toleration{exists("a", seconds(70)), exists("b", seconds(20))}, 10 * time.Second},
		"one of two not tolerated":     {[]corev1.Taint{taint("a", ""), taint("b", "")}, []corev1.Toleration{exists("a", nil)}, 0},
		"less than nothing":            {[]corev1.Taint{taint("a", "")}, []corev1.Toleration{exists("a", seconds(-5))}, -10 * time.Second},
		"a taint that says no time":    {[]corev1.Taint{undated}, []corev1.Toleration{exists("b", seconds(30))}, 29 * time.Second},
		"by value":                     {[]corev1.Taint{taint("a", "x")}, []corev1.Toleration{{Key: "a", Value: "x"}}, -1},
		"by another value":             {[]corev1.Taint{taint("a", "x")}, []corev1.Toleration{{Key: "a", Value: "y"}}, 0},
		"by another effect":            {[]corev1.Taint{taint("a", "x")}, []corev1.Toleration{{Key: "a", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}, 0},
		"a number below":               {[]corev1.Taint{taint("a", "5")}, []corev1.Toleration{{Key: "a", Operator: corev1.TolerationOpLt, Value: "10"}}, -1},
		"a number that is not above":   {[]corev1.Taint{taint("a", "5")}, []corev1.Toleration{{Key: "a", Operator: corev1.TolerationOpGt, Value: "10"}}, 0},
		"a number that cannot be read": {[]corev1.Taint{taint("a", "five")}, []corev1.Toleration{{Key: "a", Operator: corev1.TolerationOpLt, Value: "10"}}, 0},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Tolerations: c.tolerations}}
		due, ok := eviction(pod, c.taints, now, func() time.Time { return now.Add(-time.Second) })
		switch {
		case c.in == -1 && ok:
			t.Errorf("%s: leaves at %s, never expected", name, due)
		case c.in != -1 && (!ok || !due.Equal(now.Add(c.in))):
			t.Errorf("%s: leaves in %s (%v), want %s", name, due.Sub(now), ok, c.in)
		}
	}
}

package devicetaint

import (
	"testing"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestUntil(t *testing.T) {
	added := time.Unix(1000, 0)
	taint := resourcev1.DeviceTaint{Key: "k", Effect: resourcev1.DeviceTaintEffectNoExecute, TimeAdded: &metav1.Time{Time: added}}
	tolerate := func(seconds *int64) resourcev1.DeviceToleration {
		return resourcev1.DeviceToleration{Key: "k", Operator: resourcev1.DeviceTolerationOpExists, Effect: resourcev1.DeviceTaintEffectNoExecute, TolerationSeconds: seconds}
	}
	anyEffect := tolerate(nil)
	anyEffect.Effect = ""
	for _, c := range []struct {
		name  string
		taint resourcev1.DeviceTaint
		with  []resourcev1.DeviceToleration
		after time.Duration // -1: never
	}{
		{"not tolerated", taint, nil, 0},
		{"for ever", taint, []resourcev1.DeviceToleration{tolerate(nil)}, -1},
		{"for a while", taint, []resourcev1.DeviceToleration{tolerate(new(int64(30)))}, 30 * time.Second},
		{"the shorter one", taint, []resourcev1.DeviceToleration{tolerate(new(int64(30))), tolerate(new(int64(10)))}, 10 * time.Second},
		{"less than nothing", taint, []resourcev1.DeviceToleration{tolerate(new(int64(-5)))}, 0},
		{"a toleration has to name the effect", taint, []resourcev1.DeviceToleration{anyEffect}, 0},
		{"only keeps others away", resourcev1.DeviceTaint{Key: "k", Effect: resourcev1.DeviceTaintEffectNoSchedule}, nil, -1},
	} {
		end, ends := until(&c.taint, c.with)
		if ends != (c.after >= 0) || ends && !end.Equal(added.Add(c.after)) {
			t.Errorf("%s: %v %v", c.name, end, ends)
		}
	}
}

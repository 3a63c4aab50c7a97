package claims

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	healthpb "k8s.io/kubelet/pkg/apis/dra-health/v1"
)

func says(device string, h healthpb.HealthStatus, seconds int64) *healthpb.DeviceHealth {
	return &healthpb.DeviceHealth{Device: &healthpb.DeviceIdentifier{PoolName: "p", DeviceName: device}, Health: h, HealthCheckTimeoutSeconds: seconds, Message: device + " it is"}
}

func TestHealthBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []map[deviceKey]bool
		b := newHealthBoard(time.Now, func(_ string, d map[deviceKey]bool) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, d)
		})
		defer b.close()
		want := func(step, device string, health corev1.ResourceHealthStatus, message string, times int) {
			t.Helper()
			synctest.Wait()
			h, m := b.of("d", deviceKey{"p", device})
			mu.Lock()
			defer mu.Unlock()
			if h != health || m != message || len(told) != times {
				t.Errorf("%s: %s %q, told %d times", step, h, m, len(told))
			}
		}
		want("nobody spoke", "a", "Unknown", "", 0)
		b.report("d", 1, []*healthpb.DeviceHealth{says("a", healthpb.HealthStatus_HEALTHY, 0), says("b", healthpb.HealthStatus_UNHEALTHY, 5)})
		want("first", "a", "Healthy", "a it is", 1)
		want("first", "b", "Unhealthy", "b it is", 1)
		b.report("d", 1, []*healthpb.DeviceHealth{says("a", healthpb.HealthStatus_HEALTHY, -1)})
		want("nothing new", "a", "Healthy", "a it is", 1)
		time.Sleep(5 * time.Second) // what was said of b has had its time
		want("timed out", "b", "Unknown", "", 2)
		want("timed out", "a", "Healthy", "a it is", 2)
		// The driver is replaced: the end of the old one takes nothing from the new one.
		b.report("d", 2, []*healthpb.DeviceHealth{says("a", healthpb.HealthStatus_UNHEALTHY, 0)})
		b.clear("d", 1)
		want("replaced", "a", "Unhealthy", "a it is", 3)
		b.clear("d", 2)
		want("gone", "a", "Unknown", "", 4)
		long := says("a", healthpb.HealthStatus_HEALTHY, 0)
		long.Message = strings.Repeat("x", 2000)
		b.report("d", 2, []*healthpb.DeviceHealth{long})
		want("long", "a", "Healthy", strings.Repeat("x", 1021)+"...", 5)
	})
}

func TestHealthOfManyDevices(t *testing.T) {
	b := newHealthBoard(time.Now, func(string, map[deviceKey]bool) {})
	defer b.close()
	list := make([]*healthpb.DeviceHealth, maxHealth)
	for i := range list {
		list[i] = says(strings.Repeat("x", i%100)+string(rune('a'+i%26))+time.Duration(i).String(), healthpb.HealthStatus_HEALTHY, 0)
	}
	b.report("d", 1, list)
	b.report("d", 1, []*healthpb.DeviceHealth{says("one more", healthpb.HealthStatus_HEALTHY, 0)})
	if n := len(b.drivers["d"].devices); n != maxHealth {
		t.Errorf("%d devices are kept", n)
	}
}

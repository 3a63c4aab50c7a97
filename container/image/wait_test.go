package image

import (
	"runtime"
	"testing"
	"time"
)

const goarch = runtime.GOARCH

// waitUntil waits for a condition that nobody announces.
func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal("it does not happen")
		}
	}
}

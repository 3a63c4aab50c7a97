package node

import (
	"context"
	"errors"
	"testing"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/cgroup"
)

// quotas is a runtime in which, as in the kernel, no container may have more processor time than its sandbox.
type quotas struct {
	container.Runtime
	pod  int64
	each map[string]int64
}

func above(a, b int64) bool { return b > 0 && (a < 0 || a > b) }

func (q *quotas) UpdateSandbox(_ context.Context, _ string, res cgroup.Resources) error {
	for _, c := range q.each {
		if c > 0 && above(c, res.CPUQuota) {
			return errors.New("invalid argument")
		}
	}
	q.pod = res.CPUQuota
	return nil
}

func (q *quotas) UpdateContainer(_ context.Context, id string, res cgroup.Resources) error {
	if res.CPUQuota > 0 && above(res.CPUQuota, q.pod) {
		return errors.New("invalid argument")
	}
	q.each[id] = res.CPUQuota
	return nil
}

func TestResizeOrder(t *testing.T) {
	for _, from := range []map[string]int64{{"a": 100, "b": 400}, {"a": 50, "b": 50}, {"a": -1, "b": 300}, {"a": 900, "b": 10}} {
		for _, to := range []map[string]int64{{"a": 10, "b": 20}, {"a": 500, "b": 500}, {"a": -1, "b": 20}, {"a": 20, "b": 700}} {
			sum := func(m map[string]int64) int64 {
				if m["a"] < 0 || m["b"] < 0 {
					return 0
				}
				return m["a"] + m["b"]
			}
			rt := &quotas{pod: unlimited(cgroup.Resources{CPUQuota: sum(from)}).CPUQuota, each: map[string]int64{"a": from["a"], "b": from["b"]}}
			pod := unlimited(cgroup.Resources{CPUQuota: sum(to)})
			for _, id := range []string{"a", "b"} {
				if err := resizeCgroups(context.Background(), rt, "s", id, pod, cgroup.Resources{CPUQuota: to[id]}, id == "b"); err != nil {
					t.Errorf("%v to %v: %s: %v", from, to, id, err)
				}
			}
			if rt.pod != pod.CPUQuota || rt.each["a"] != to["a"] || rt.each["b"] != to["b"] {
				t.Errorf("%v to %v: %v", from, to, rt)
			}
		}
	}
}

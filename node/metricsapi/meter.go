package metricsapi

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// NodeSample is what a node and its pods have used so far.
type NodeSample struct {
	Node   string
	Labels map[string]string
	Usage
	Pods []PodSample
}

// PodSample is the part of one pod.
type PodSample struct {
	Namespace, Name string
	UID             types.UID
	Labels          map[string]string
	Containers      []ContainerSample
}

// ContainerSample is the part of one running container.
type ContainerSample struct {
	Name string
	// ID tells a container from the one that bore its name before.
	ID string
	Usage
}

// Usage is cumulative CPU time and present memory, as read at a time.
type Usage struct {
	Time time.Time
	// Started is when CPU time began to count.
	Started time.Time
	// CPUNanos is CPU time in nanoseconds since then.
	CPUNanos uint64
	// WorkingSetBytes is memory that cannot be given back at once.
	WorkingSetBytes uint64
}

// Rate is usage per time.
type Rate struct {
	Time   time.Time
	Window time.Duration
	// NanoCores is CPU use in billionths of a core.
	NanoCores       uint64
	WorkingSetBytes uint64
}

const (
	// fresh is how long an answer is given again without measuring.
	fresh = 5 * time.Second
	// usable is how old a first sample may be for a rate that is still called current.
	usable = 2 * time.Minute
	// window is the time between two samples where there is no usable first one.
	window = time.Second
)

// Meter turns cumulative samples into rates, on demand: nothing is measured while nobody asks.
//
// A rate needs two samples. The last one of each request is kept, so that whoever asks regularly (an
// autoscaler, watch kubectl top) gets the mean since the last time at the price of one sample; who asks
// for the first time in a while waits for a second. Upstream's metrics-server scrapes every node each 15 s
// for ever instead, which an idle machine would notice.
type Meter struct {
	// Sample reads all nodes.
	Sample func(ctx context.Context) ([]NodeSample, error)
	// Now and After are the clock.
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time

	mu   sync.Mutex // one measurement at a time; guards what follows
	at   time.Time  // of last
	last []NodeSample
	done *Reading
}

// Reading is the rates of all nodes at one time. It is shared and not changed.
type Reading struct {
	At    time.Time
	Nodes []NodeRate
}

// NodeRate is that of a node and its pods.
type NodeRate struct {
	Node   string
	Labels map[string]string
	Rate
	Pods []PodRate
}

// PodRate is that of a pod; Time and Window are those of its first container.
type PodRate struct {
	PodSample
	Rates []Rate // of PodSample.Containers
}

// Read measures, or gives an answer that is less than 5 s old.
func (m *Meter) Read(ctx context.Context) (*Reading, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.Now()
	if m.done != nil && now.Sub(m.done.At) < fresh && !now.Before(m.done.At) {
		return m.done, nil
	}
	before, age := m.last, now.Sub(m.at)
	if before == nil || age > usable || age <= 0 {
		var err error
		if before, err = m.Sample(ctx); err != nil {
			return nil, err
		}
		if len(before) == 0 {
			return &Reading{At: now}, nil // nothing to wait for
		}
		select {
		case <-m.After(window):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	after, err := m.Sample(ctx)
	if err != nil {
		return nil, err
	}
	m.last, m.at = after, m.Now()
	m.done = &Reading{At: m.at, Nodes: rates(before, after)}
	return m.done, nil
}

// rates is pure.
func rates(before, after []NodeSample) []NodeRate {
	nodes := map[string]Usage{}
	containers := map[string]Usage{}
	for i := range before {
		n := &before[i]
		nodes[n.Node] = n.Usage
		for j := range n.Pods {
			for _, c := range n.Pods[j].Containers {
				containers[containerKey(n.Pods[j].UID, c)] = c.Usage
			}
		}
	}
	out := make([]NodeRate, 0, len(after))
	for i := range after {
		n := &after[i]
		nr := NodeRate{Node: n.Node, Labels: n.Labels, Pods: make([]PodRate, 0, len(n.Pods))}
		first, ok := nodes[n.Node]
		nr.Rate = n.Usage.since(first, ok)
		for j := range n.Pods {
			pr := PodRate{PodSample: n.Pods[j]}
			for _, c := range n.Pods[j].Containers {
				first, ok := containers[containerKey(pr.UID, c)]
				pr.Rates = append(pr.Rates, c.Usage.since(first, ok))
			}
			nr.Pods = append(nr.Pods, pr)
		}
		out = append(out, nr)
	}
	return out
}

func containerKey(pod types.UID, c ContainerSample) string {
	return string(pod) + "/" + c.Name + "/" + c.ID
}

// since is the rate from an earlier usage, or from the start where there is none or the count began anew.
func (u Usage) since(first Usage, ok bool) Rate {
	if !ok || first.CPUNanos > u.CPUNanos || !first.Time.Before(u.Time) {
		first = Usage{Time: u.Started}
	}
	r := Rate{Time: u.Time, WorkingSetBytes: u.WorkingSetBytes}
	if !first.Time.IsZero() && first.Time.Before(u.Time) {
		r.Window = u.Time.Sub(first.Time)
		r.NanoCores = uint64(float64(u.CPUNanos-first.CPUNanos) * float64(time.Second) / float64(r.Window))
	}
	return r
}

package volume

import (
	"context"
	"errors"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// watched are the resources whose changes volumes follow.
var watched = []string{
	"configmaps", "secrets", "pods", "nodes", "serviceaccounts", trustBundles, podRequests.Name,
	"persistentvolumeclaims", "persistentvolumes",
}

// follow registers a pod for exactly these sources.
func (m *Manager) follow(p *podState, sources map[source]struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range p.sources {
		if _, ok := sources[s]; ok {
			continue
		}
		delete(m.users[s], p.uid)
		if len(m.users[s]) == 0 {
			delete(m.users, s)
		}
	}
	for s := range sources {
		if m.users[s] == nil {
			m.users[s] = map[types.UID]struct{}{}
		}
		m.users[s][p.uid] = struct{}{}
	}
	p.sources = sources
}

// Run keeps volumes up to date until ctx ends: each change of a source is written to the pods that use
// it, and tokens are refreshed when their time comes. It is to be started once, before or after the first
// Prepare; without it volumes are written by Prepare alone.
func (m *Manager) Run(ctx context.Context) error {
	cursor, err := m.cfg.Client.Cursor(m.cfg.Client.Snapshot().Revision(), watched...)
	if err != nil {
		return err
	}
	m.refreshAll(ctx) // what changed since the pods were prepared
	for {
		events, err := cursor.Poll()
		switch {
		case errors.Is(err, store.ErrCompacted):
			if cursor, err = m.cfg.Client.Cursor(m.cfg.Client.Snapshot().Revision(), watched...); err != nil {
				return err
			}
			m.refreshAll(ctx)
			continue
		case err != nil:
			return err
		}
		for uid := range m.concerned(events) {
			m.refresh(ctx, uid)
		}
		if len(events) > 0 {
			continue
		}
		var timer <-chan time.Time
		if due, ok := m.nextDue(); ok {
			timer = m.cfg.After(max(due.Sub(m.cfg.Now()), 0))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-cursor.Ready():
		case <-m.tokens:
		case <-timer:
			for _, uid := range m.takeDue(m.cfg.Now()) {
				m.refresh(ctx, uid)
			}
		}
	}
}

// concerned gives the pods that use what changed.
func (m *Manager) concerned(events []store.Event) map[types.UID]struct{} {
	out := map[types.UID]struct{}{}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range events {
		if !matters(&events[i]) {
			continue
		}
		key := events[i].Entry.Key
		if key.Resource == podRequests.Name {
			if uid, ok := decided(&events[i]); ok && m.pods[uid] != nil {
				out[uid] = struct{}{}
			}
			continue
		}
		for uid := range m.users[key] {
			out[uid] = struct{}{}
		}
		if key.Resource == trustBundles {
			for uid := range m.users[source{Resource: trustBundles}] {
				out[uid] = struct{}{}
			}
		}
	}
	return out
}

// matters tells whether a change can show in a volume. Pods and nodes change all the time in
// what no volume shows: conditions, addresses, heartbeats.
func matters(ev *store.Event) bool {
	if ev.Prev == nil || ev.Deleted {
		return true
	}
	switch now := ev.Entry.Object.(type) {
	case *corev1.Pod:
		was := ev.Prev.Object.(*corev1.Pod)
		return !maps.Equal(was.Labels, now.Labels) || !maps.Equal(was.Annotations, now.Annotations) ||
			!equality.Semantic.DeepEqual(&was.Spec, &now.Spec)
	case *corev1.Node:
		was := ev.Prev.Object.(*corev1.Node)
		return !equality.Semantic.DeepEqual(was.Status.Allocatable, now.Status.Allocatable)
	}
	return true
}

func (m *Manager) uids() []types.UID {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]types.UID, 0, len(m.pods))
	for uid := range m.pods {
		out = append(out, uid)
	}
	return out
}

func (m *Manager) refreshAll(ctx context.Context) {
	for _, uid := range m.uids() {
		m.refresh(ctx, uid)
	}
}

// refresh writes what changed in the sources of one pod. A volume whose source is gone or
// wrong keeps its content, as upstream does, and a warning is given.
func (m *Manager) refresh(ctx context.Context, uid types.UID) {
	m.mu.Lock()
	p := m.pods[uid]
	m.mu.Unlock()
	if p == nil || ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return
	}
	snap := m.cfg.Client.Snapshot()
	if now, ok := client.Pods.Get(snap, p.pod.Namespace, p.pod.Name); ok && samePod(now, uid) {
		p.pod = now
	}
	if p.failed {
		select {
		case p.again <- struct{}{}:
		default:
		}
		if m.cfg.Wake != nil {
			m.cfg.Wake(uid)
		}
	}
	for i := range p.pod.Spec.Volumes {
		v := &p.pod.Spec.Volumes[i]
		if _, made := p.made[v.Name]; !made || !fromObjects(v) {
			continue
		}
		if _, err := m.setUpFiles(ctx, snap, p, v); err != nil {
			m.warn(p.pod, setUpFailure(v.Name, err))
		}
	}
}

func (m *Manager) warn(pod *corev1.Pod, f Failure) {
	m.cfg.Log.Warn("volume not updated", "pod", pod.Namespace+"/"+pod.Name, "volume", f.Volume, "err", f.Err)
	if m.cfg.Warn != nil {
		m.cfg.Warn(pod, Reason, f.Message)
	}
}

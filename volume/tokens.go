package volume

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// tokenKey names a token file of a pod.
type tokenKey struct{ volume, path string }

// heldToken is a token in use.
type heldToken struct {
	request TokenRequest
	token   Token
	issued  time.Time
}

const (
	// tokenTimeout bounds one request for a token.
	tokenTimeout = 10 * time.Second
	// tokenMaxAge is the age at which a token is refreshed however long it lives.
	tokenMaxAge = 24 * time.Hour
	// tokenRetry is the wait after a refresh failed.
	tokenRetry = 30 * time.Second
)

// due is when a token is to be refreshed: at 80 % of its life, and after a day at the latest
// (https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/).
func (h heldToken) due() time.Time {
	life := h.token.Expires.Sub(h.issued) * 8 / 10
	return h.issued.Add(min(life, tokenMaxAge))
}

// fetchTokens fills in the tokens of a volume's files, from those held as long as they are
// fresh. p.mu is held.
func (m *Manager) fetchTokens(ctx context.Context, p *podState, volume string, files payload) error {
	now := m.cfg.Now()
	for path, f := range files {
		if f.token == nil {
			continue
		}
		key := tokenKey{volume, path}
		held, ok := p.tokens[key]
		if !ok || held.request != *f.token || !now.Before(held.due()) {
			token, err := m.issue(ctx, *f.token)
			if err != nil {
				// One that still works is better than none.
				if ok && held.request == *f.token && now.Before(held.token.Expires) {
					f.data = []byte(held.token.Value)
					files[path] = f
					m.schedule(now.Add(tokenRetry), p.uid)
					m.cfg.Log.Warn("service account token not refreshed", "pod", p.uid, "volume", volume, "err", err)
					continue
				}
				return fmt.Errorf("failed to fetch token: %w", err)
			}
			held = heldToken{request: *f.token, token: token, issued: now}
			p.tokens[key] = held
			m.schedule(held.due(), p.uid)
		}
		f.data = []byte(held.token.Value)
		files[path] = f
	}
	return nil
}

func (m *Manager) issue(ctx context.Context, r TokenRequest) (Token, error) {
	if m.cfg.Token == nil {
		return Token{}, errors.New("this node cannot request service account tokens")
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	return m.cfg.Token(ctx, r)
}

// dueTime says that a pod has a token to refresh at a time. One that is outdated, because the pod
// is gone or the token was renewed meanwhile, costs a look and nothing else.
type dueTime struct {
	at  time.Time
	uid types.UID
}

// dueTimes is a heap, the earliest first.
type dueTimes []dueTime

func (d dueTimes) Len() int           { return len(d) }
func (d dueTimes) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d dueTimes) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *dueTimes) Push(x any)        { *d = append(*d, x.(dueTime)) }
func (d *dueTimes) Pop() any {
	last := len(*d) - 1
	x := (*d)[last]
	*d = (*d)[:last]
	return x
}

// schedule asks for a refresh, and wakes Run if it comes before all others.
func (m *Manager) schedule(at time.Time, uid types.UID) {
	m.mu.Lock()
	heap.Push(&m.due, dueTime{at, uid})
	first := m.due[0].uid == uid && m.due[0].at.Equal(at)
	m.mu.Unlock()
	if !first {
		return
	}
	select {
	case m.tokens <- struct{}{}:
	default:
	}
}

// nextDue is when the first token is due.
func (m *Manager) nextDue() (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.due) > 0 && m.pods[m.due[0].uid] == nil {
		heap.Pop(&m.due)
	}
	if len(m.due) == 0 {
		return time.Time{}, false
	}
	return m.due[0].at, true
}

// takeDue gives the pods whose time has come, each once.
func (m *Manager) takeDue(now time.Time) []types.UID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []types.UID
	seen := map[types.UID]bool{}
	for len(m.due) > 0 && !m.due[0].at.After(now) {
		d := heap.Pop(&m.due).(dueTime)
		if m.pods[d.uid] != nil && !seen[d.uid] {
			seen[d.uid] = true
			out = append(out, d.uid)
		}
	}
	return out
}

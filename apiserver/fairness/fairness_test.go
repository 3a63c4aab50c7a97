package fairness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api/flowcontrol"
	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/client"
)

func defaults() ([]*flowcontrolv1.FlowSchema, []*flowcontrolv1.PriorityLevelConfiguration) {
	return append(flowcontrol.MandatorySchemas(), flowcontrol.SuggestedSchemas()...), append(flowcontrol.MandatoryLevels(), flowcontrol.SuggestedLevels()...)
}

func gate(seats int) *Gate {
	s, l := defaults()
	return New(Config{Seats: seats}, s, l)
}

func user(name string, groups ...string) *client.User {
	return &client.User{Name: name, Groups: append(groups, client.GroupAuthenticated)}
}

var listPods = route.Info{IsResource: true, Verb: "list", Version: "v1", Resource: "pods", Namespace: "default", Path: "/api/v1/namespaces/default/pods"}

func TestClassify(t *testing.T) {
	g := gate(600)
	account := client.ServiceAccountUser("kube-system", "x", "")
	other := client.ServiceAccountUser("default", "x", "")
	lease := route.Info{IsResource: true, Verb: "update", Group: "coordination.k8s.io", Version: "v1", Resource: "leases", Namespace: "kube-node-lease", Name: "n"}
	nodeStatus := route.Info{IsResource: true, Verb: "patch", Version: "v1", Resource: "nodes", Name: "n", Subresource: "status"}
	nodeProxy := route.Info{IsResource: true, Verb: "get", Version: "v1", Resource: "nodes", Name: "n", Subresource: "proxy"}
	for _, c := range []struct {
		user *client.User
		info route.Info
		want string
	}{
		{user("admin", client.GroupMasters), listPods, "exempt"},
		{user("system:node:n", client.GroupNodes), listPods, "system-nodes"},
		{user("system:node:n", client.GroupNodes), lease, "system-node-high"},
		{user("system:node:n", client.GroupNodes), nodeStatus, "system-node-high"},
		{user("system:node:n", client.GroupNodes), nodeProxy, "system-nodes"},
		{user("system:kube-scheduler"), lease, "system-leader-election"},
		{user("system:kube-scheduler"), listPods, "kube-scheduler"},
		{&account, listPods, "kube-system-service-accounts"},
		{&account, lease, "system-leader-election"},
		{&other, listPods, "service-accounts"},
		{user("somebody"), listPods, "global-default"},
		{user("somebody"), route.Info{Verb: "get", Path: "/healthz"}, "probes"},
		{user("somebody"), route.Info{Verb: "get", Path: "/version"}, "global-default"},
		{&client.User{Name: "nobody"}, listPods, ""},
	} {
		got := ""
		if s := g.table.Load().classify(&c.info, c.user); s != nil {
			got = s.name
		}
		if got != c.want {
			t.Errorf("%s %s %s%s: %q, want %q", c.user.Name, c.info.Verb, c.info.Resource, c.info.Path, got, c.want)
		}
	}
}

func TestSeats(t *testing.T) {
	g := gate(600)
	for _, l := range g.core.levels {
		want := map[string][2]int{ // nominal and least, as upstream computes them
			"exempt": {0, 0}, "catch-all": {13, 13}, "system": {74, 50}, "node-high": {98, 73}, "leader-election": {25, 25},
			"workload-high": {98, 49}, "workload-low": {245, 24}, "global-default": {49, 24},
		}[l.name]
		if l.nominal != want[0] || l.least < want[1]-1 || l.least > want[1]+1 {
			t.Errorf("%s: nominal %d, least %d, want %v", l.name, l.nominal, l.least, want)
		}
	}
}

// TestDealIsAHand: a flow always gets the same hand of distinct queues, and two flows seldom the same one.
func TestDealIsAHand(t *testing.T) {
	l := &level{queues: make([]*queue, 64), hand: 6}
	hand := func(flow uint64) (qs []*queue) {
		for i := range l.queues {
			l.queues[i] = &queue{}
		}
		for range 6 { // each pick makes a queue busy, so that the next is another
			q := l.deal(flow)
			q.seats = 1000
			qs = append(qs, q)
		}
		return qs
	}
	seen := map[string]bool{}
	for range 200 {
		flow := rand.Uint64()
		var at []int
		for _, q := range hand(flow) {
			i := slices.Index(l.queues, q)
			if slices.Contains(at, i) {
				t.Fatalf("flow %x: queue %d twice in a hand: %v", flow, i, at)
			}
			at = append(at, i)
		}
		slices.Sort(at)
		seen[fmt.Sprint(at)] = true
	}
	if len(seen) < 190 {
		t.Errorf("200 flows share %d hands", len(seen))
	}
}

// TestAFloodCostsItsAuthorOnly: one user has a hundred requests waiting at all times; the others ask now and then, and get
// their answers at once, at the same rate as if the flood were not there.
func TestAFloodCostsItsAuthorOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(60)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var mu sync.Mutex
		done := map[string]int{}
		longest := map[string]time.Duration{}
		work := func(u *client.User, pause time.Duration) {
			for ctx.Err() == nil {
				began := time.Now()
				p, err := g.Enter(ctx, &listPods, u, 1, 0)
				if err == nil {
					time.Sleep(20 * time.Millisecond)
					p.Release()
					mu.Lock()
					done[u.Name]++
					longest[u.Name] = max(longest[u.Name], time.Since(began))
					mu.Unlock()
				} else {
					pause = max(pause, 10*time.Millisecond)
				}
				time.Sleep(pause)
			}
		}
		for range 100 {
			wg.Go(func() { work(user("flood"), 0) })
		}
		for i := range 5 {
			wg.Go(func() { work(user(fmt.Sprintf("quiet-%d", i)), 30*time.Millisecond) })
		}
		time.Sleep(20 * time.Second)
		stop()
		wg.Wait()
		for i := range 5 {
			name := fmt.Sprintf("quiet-%d", i)
			// Alone, a pass of 50 ms would be done 400 times; a wait for one seat of the flood is 20 ms.
			if done[name] < 280 || longest[name] > 100*time.Millisecond {
				t.Errorf("%s was served %d times, waited up to %s; the flood was served %d times", name, done[name], longest[name], done["flood"])
			}
		}
		if g.core.used != 0 || g.bytes.Load() != 0 {
			t.Errorf("%d seats and %d bytes were not given back", g.core.used, g.bytes.Load())
		}
	})
}

// TestQueuesAreBounded: what finds its queue full is refused at once, what waits too long in the end.
func TestQueuesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(60)
		var held []Pass
		level := g.core.levels[slices.IndexFunc(g.core.levels, func(l *level) bool { return l.name == "global-default" })]
		results := make(chan string, 5000)
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 2000 {
			wg.Go(func() {
				p, err := g.Enter(t.Context(), &listPods, user("flood"), 1, 0)
				var r *Rejected
				if errors.As(err, &r) {
					results <- r.Reason
					return
				}
				mu.Lock()
				held = append(held, p)
				mu.Unlock()
			})
		}
		synctest.Wait()
		full := len(results)
		g.mu.Lock()
		waiting := level.waiting
		g.mu.Unlock()
		if waiting > 6*50 || full < 2000-6*50-60 {
			t.Errorf("%d wait and %d were refused", waiting, full)
		}
		for range full {
			if why := <-results; why != string(queueFull) {
				t.Fatalf("refused because of %s", why)
			}
		}
		time.Sleep(16 * time.Second)
		wg.Wait()
		if len(results) != waiting || <-results != string(timeOut) {
			t.Errorf("%d of %d that waited were let go after 15 s", len(results)+1, waiting)
		}
		for i := range held {
			held[i].Release()
			held[i].Release() // once counts
		}
		if level.used != 0 || level.waiting != 0 || len(level.active) != 0 {
			t.Errorf("%+v", level)
		}
	})
}

// TestModel drives the core with random requests and checks after each step what always holds: seats add up, a level below
// what nobody may borrow is never refused, nothing waits that fits, and all come to an end.
func TestModel(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 7))
		s, l := defaults()
		g := New(Config{Seats: 20 + r.IntN(600)}, s, l)
		c := &g.core
		type run struct {
			l     *level
			q     *queue
			width int
		}
		var running []run
		var waiting []*waiter
		check := func() {
			t.Helper()
			used := 0
			for _, l := range c.levels {
				seats, wait := 0, 0
				for _, x := range running {
					if x.l == l {
						seats += x.width
					}
				}
				for _, w := range waiting {
					if w.level == l {
						wait++
					}
				}
				if l.used != seats || l.waiting != wait {
					t.Fatalf("seed %d: %s uses %d of %d, waits %d of %d", seed, l.name, l.used, seats, l.waiting, wait)
				}
				if !l.exempt {
					used += seats
				}
				if l.used > max(l.most, maxWidth) && !l.exempt {
					t.Fatalf("seed %d: %s uses %d, may %d", seed, l.name, l.used, l.most)
				}
				if len(l.active) > 0 && c.fits(l, l.active[l.next()].waiters[0].width) {
					t.Fatalf("seed %d: %s has a request waiting that fits", seed, l.name)
				}
			}
			if c.used != used {
				t.Fatalf("seed %d: %d seats are used, %d counted", seed, used, c.used)
			}
		}
		collect := func() {
			waiting = slices.DeleteFunc(waiting, func(w *waiter) bool {
				if w.in {
					running = append(running, run{w.level, w.queue, w.width})
				}
				return w.in
			})
		}
		for range 400 {
			l := c.levels[r.IntN(len(c.levels))]
			switch n := r.IntN(10); {
			case n < 6:
				width := max(1, min(1+r.IntN(maxWidth), l.nominal))
				own := l.used+width <= l.least && len(l.active) == 0
				q, in, why := c.arrive(l, r.Uint64N(12), width)
				switch {
				case in:
					running = append(running, run{l, q, width})
				case own:
					t.Fatalf("seed %d: %s has seats of its own and did not let in", seed, l.name)
				case why == "":
					w := &waiter{level: l, queue: q, width: width, ready: make(chan struct{})}
					waiting = append(waiting, w)
					c.wait(w)
					collect()
				}
			case n < 9 && len(running) > 0:
				i := r.IntN(len(running))
				x := running[i]
				running = slices.Delete(running, i, i+1)
				c.finish(x.l, x.q, x.width, time.Duration(r.IntN(50))*time.Millisecond)
				collect()
			case len(waiting) > 0:
				i := r.IntN(len(waiting))
				w := waiting[i]
				waiting = slices.Delete(waiting, i, i+1)
				if !c.withdraw(w, timeOut) {
					t.Fatal("a request that waits was let in")
				}
				collect()
			}
			if r.IntN(50) == 0 {
				g.Update(s, reshaped(r))
				collect()
			}
			check()
		}
		for len(running) > 0 {
			x := running[0]
			running = running[1:]
			c.finish(x.l, x.q, x.width, time.Millisecond)
			collect()
			check()
		}
		if len(waiting) > 0 {
			t.Fatalf("seed %d: %d wait for ever", seed, len(waiting))
		}
	}
}

// reshaped is a configuration to change to while requests run.
func reshaped(r *rand.Rand) []*flowcontrolv1.PriorityLevelConfiguration {
	_, l := defaults()
	for _, o := range l {
		if lim := o.Spec.Limited; lim != nil && r.IntN(2) == 0 {
			*lim.NominalConcurrencyShares = int32(1 + r.IntN(100))
			if q := lim.LimitResponse.Queuing; q != nil {
				q.Queues = 32
			}
		}
	}
	return l
}

// TestBytes: memory that requests need is bounded whoever asks, and one request alone always gets through.
func TestBytes(t *testing.T) {
	s, l := defaults()
	g := New(Config{Seats: 100, Bytes: 1000}, s, l)
	a, err := g.Enter(t.Context(), &listPods, user("u"), 1, 5000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Enter(t.Context(), &listPods, user("u"), 1, 1); err == nil {
		t.Error("more bytes than may be in flight")
	}
	if p, err := g.Enter(t.Context(), &listPods, user("u"), 1, 0); err != nil {
		t.Error("a request without a body was refused")
	} else {
		p.Release()
	}
	a.Release()
	b, err := g.Enter(t.Context(), &listPods, user("u"), 1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	c, err := g.Enter(t.Context(), &listPods, user("admin", client.GroupMasters), 1, 200)
	if err != nil {
		t.Error("an administrator has a reserve", err)
	}
	b.Release()
	c.Release()
	if g.bytes.Load() != 0 {
		t.Error("bytes were not given back")
	}
}

func TestReports(t *testing.T) {
	g := gate(100)
	p, err := g.Enter(t.Context(), &listPods, user("u"), 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	g.WriteMetrics(&b)
	for _, want := range []string{
		`apiserver_flowcontrol_current_executing_seats{priority_level="global-default"} 3`,
		`apiserver_flowcontrol_current_executing_requests{flow_schema="global-default",priority_level="global-default"} 1`,
		`apiserver_flowcontrol_dispatched_requests_total{flow_schema="global-default",priority_level="global-default"} 1`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s", want)
		}
	}
	p.Release()
	for _, what := range []string{"dump_priority_levels", "dump_queues", "dump_requests"} {
		if b.Reset(); !g.Dump(&b, what) || !strings.Contains(b.String(), "PriorityLevelName") {
			t.Errorf("%s: %s", what, b.String())
		}
	}
	if g.Dump(&b, "dump_other") {
		t.Error("dump_other")
	}
}

func TestMissingLevel(t *testing.T) {
	g := gate(100)
	s, l := defaults()
	s = append(s, &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: flowcontrolv1.FlowSchemaSpec{
		MatchingPrecedence: 3, PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "none"},
		Rules: flowcontrol.MandatorySchemas()[1].Spec.Rules}})
	g.Update(s, l)
	if got := g.table.Load().classify(&listPods, user("u")).name; got != "global-default" {
		t.Errorf("a schema without level took a request: %s", got)
	}
}

func BenchmarkEnter(b *testing.B) {
	g := gate(600)
	account := client.ServiceAccountUser("default", "x", "")
	for name, u := range map[string]*client.User{"admin": user("admin", client.GroupMasters), "serviceaccount": &account, "user": user("u")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := g.Enter(b.Context(), &listPods, u, 1, 100)
				if err != nil {
					b.Fatal(err)
				}
				p.Release()
			}
		})
	}
}

// withExtra are the objects with a level more, to which a schema sends everybody.
func withExtra() ([]*flowcontrolv1.FlowSchema, []*flowcontrolv1.PriorityLevelConfiguration) {
	s, l := defaults()
	s = append(s, &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "extra"}, Spec: flowcontrolv1.FlowSchemaSpec{
		MatchingPrecedence: 3, PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "extra"},
		Rules: flowcontrol.MandatorySchemas()[1].Spec.Rules}})
	shares, none := int32(1000), int32(0)
	l = append(l, &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "extra"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
		Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{
			NominalConcurrencyShares: &shares, LendablePercent: &none, BorrowingLimitPercent: &none,
			LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeQueue,
				Queuing: &flowcontrolv1.QueuingConfiguration{Queues: 1, HandSize: 1, QueueLengthLimit: 100}}}}})
	return s, l
}

func (g *Gate) levelNamed(name string) *level {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.core.levels {
		if l.name == name {
			return l
		}
	}
	return nil
}

// TestDeletedLevel: a level that was deleted while it was busy keeps no seats from others, and is gone once its last request is,
// whether that ran or waited.
func TestDeletedLevel(t *testing.T) {
	for _, last := range []string{"runs", "waits"} {
		synctest.Test(t, func(t *testing.T) {
			s, l := withExtra()
			g := New(Config{Seats: 20}, s, l)
			extra := g.levelNamed("extra")
			var held []Pass
			for range extra.nominal {
				p, err := g.Enter(t.Context(), &listPods, user("u"), 1, 0)
				if err != nil || p.level != extra {
					t.Fatal(err)
				}
				held = append(held, p)
			}
			ctx, leave := context.WithCancel(t.Context())
			left := make(chan error)
			go func() {
				p, err := g.Enter(ctx, &listPods, user("u"), 1, 0)
				p.Release()
				left <- err
			}()
			synctest.Wait()
			if extra.waiting != 1 {
				t.Fatalf("%d wait", extra.waiting)
			}
			g.Update(defaults())
			if g.levelNamed("extra") == nil || extra.least != 0 {
				t.Errorf("a busy level that was deleted has %d seats of its own", extra.least)
			}
			if last == "waits" {
				// It may run what waits with no seat of its own, when there are enough.
				leave()
				<-left
			}
			for i := range held {
				if g.levelNamed("extra") == nil {
					t.Fatal("a busy level is gone")
				}
				held[i].Release()
			}
			if last == "runs" {
				if err := <-left; err != nil {
					t.Errorf("what waited when its level was deleted: %v", err)
				}
			}
			leave()
			if g.levelNamed("extra") != nil {
				t.Error("a deleted level stays when it is idle")
			}
			if g.core.used != 0 {
				t.Errorf("%d seats are taken by nobody", g.core.used)
			}
		})
	}
}

// TestWithdrawnFromDeletedLevel: the last of a deleted level is a request that only waited.
func TestWithdrawnFromDeletedLevel(t *testing.T) {
	c := &core{total: 1}
	l := &level{name: "a", nominal: 1, most: 1, least: 1, queues: make([]*queue, 1), hand: 1, limit: 10, gone: true, running: 1, used: 1}
	c.levels, c.used = []*level{l}, 1
	q, in, _ := c.arrive(l, 0, 1)
	if in {
		t.Fatal("there is no seat")
	}
	w := &waiter{level: l, queue: q, width: 1, ready: make(chan struct{})}
	c.wait(w)
	l.running, l.used = 0, 0 // as if it ran at no one's cost, so that the waiter is the last
	if !c.withdraw(w, cancelled) || len(c.levels) != 0 {
		t.Errorf("%d levels stay", len(c.levels))
	}
}

// TestLevelDeletedMeanwhile: a request that was sorted just before its level was deleted is sorted again.
func TestLevelDeletedMeanwhile(t *testing.T) {
	s, l := withExtra()
	var g *Gate
	var once sync.Once
	g = New(Config{Seats: 100, Bytes: 1000, Now: func() time.Time {
		if g != nil {
			once.Do(func() { g.Update(defaults()) }) // between sorting and the lock
		}
		return time.Now()
	}}, s, l)
	p, err := g.Enter(t.Context(), &listPods, user("u"), 1, 10)
	if err != nil || p.level.name != "global-default" || p.level != g.levelNamed("global-default") || g.bytes.Load() != 10 {
		t.Errorf("%v, in level %s, with %d bytes", err, p.level.name, g.bytes.Load())
	}
	p.Release()
}

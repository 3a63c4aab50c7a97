package proxy

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"coracle.dev/coracle/mesh/table"
)

// errClient is that the client's side broke: nobody is there to be answered.
var errClient = errors.New("the client went away")

// serve answers one request and accounts for it. An error means that the connection is of no use any more.
func (p *Proxy) serve(c *call) error {
	c.began = time.Now()
	p.requests.Add(1)
	err := c.route1()
	if err == nil && c.code == 0 {
		c.code = 499
	}
	if errors.Is(err, errClient) && !c.out.started() {
		c.code = 499
	}
	p.account(c)
	return err
}

// route1 finds what the request is for.
func (c *call) route1() error {
	if c.req.method == "CONNECT" {
		return c.local(405, "CONNECT is not served")
	}
	chain := c.listener.Chain(c.req.local, c.req.secure != nil, c.req.serverName)
	if chain == nil || chain.Hosts == nil {
		return c.local(421, "nobody is served here")
	}
	if c.req.secure != nil {
		other := c.listener.Chain(c.req.local, true, table.Hostname(c.req.authority))
		if other != nil && other != chain {
			return c.local(421, "this host is served on another connection")
		}
	}
	host := chain.Hosts.Match(c.req.authority)
	if host == nil {
		return c.local(404, "no such host")
	}
	c.route = host.Match(&table.Request{Method: c.req.method, Authority: c.req.authority, Scheme: c.req.scheme,
		Path: c.req.path, Query: c.req.query, Header: c.req.fields.get})
	if c.route == nil {
		return c.local(404, "no such route")
	}
	c.rule = c.route.Rule
	if t := c.rule.Timeouts.Request; t > 0 {
		c.deadline = c.began.Add(t)
	}
	return c.act()
}

// act does what the rule says.
func (c *call) act() error {
	r := c.rule
	if f := r.Fault; f != nil {
		if f.DelayShare > 0 && rand.Uint32N(1e6) < f.DelayShare && !c.pause(f.Delay) {
			return errClient
		}
		if f.AbortShare > 0 && rand.Uint32N(1e6) < f.AbortShare {
			return c.local(f.AbortCode, "fault injected")
		}
	}
	if r.CORS != nil && preflight(&c.req) {
		return c.answered(&response{code: 204, fields: preflightFields(r.CORS, &c.req), length: -2})
	}
	if d := r.Direct; d != nil {
		out := &response{code: d.Code, length: int64(len(d.Body))}
		if d.Body != "" {
			out.fields = fields{{"Content-Type", d.ContentType}}
			out.body = strings.NewReader(d.Body)
		}
		return c.answer(out)
	}
	if r.Redirect != nil {
		to := c.location(r.Redirect)
		if to == "" {
			return c.local(500, "the route redirects to a malformed address")
		}
		return c.answer(&response{code: redirectCode(r.Redirect), fields: fields{{"Location", to}}})
	}
	if err := c.keep(); err != nil {
		if c.starved.Load() {
			return c.local(408, "the request's body took too long")
		}
		return errClient
	}
	to := c.weighted()
	if to == nil || to.Backend == "" {
		return c.local(500, "the route has no valid backend")
	}
	cl, _ := c.view.clusters.Get(to.Backend)
	if cl == nil {
		return c.local(500, "the route's backend does not exist")
	}
	c.backend = to.Backend
	message := c.outgoing(to)
	if !message.clean() {
		return c.local(500, "the route makes a malformed request")
	}
	c.mirror(message)
	return c.exchange(cl, to, message)
}

// pause waits; false means that the client went away.
func (c *call) pause(d time.Duration) bool {
	ended := make(chan struct{})
	if !c.hold(func() { close(ended) }) {
		return false
	}
	if !c.streamed() {
		c.watch()
		defer c.unwatch()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ended:
	case <-c.p.ctx.Done():
	}
	return c.release()
}

// weighted chooses the backend: that of the session, else by weight.
func (c *call) weighted() *table.Weighted {
	all := c.rule.Backends
	if len(all) == 1 && all[0].Weight > 0 {
		return &all[0]
	}
	if s := c.rule.Session; s != nil {
		if sticky := sessionOf(s, c.req.fields); sticky != "" {
			for i := range all {
				if cl, _ := c.view.clusters.Get(all[i].Backend); cl != nil && all[i].Weight > 0 && cl.state.Load().token[sticky] != nil {
					return &all[i]
				}
			}
		}
	}
	var total uint64
	for i := range all {
		total += uint64(all[i].Weight)
	}
	if total == 0 {
		return nil
	}
	at := rand.Uint64N(total)
	for i := range all {
		if at < uint64(all[i].Weight) {
			return &all[i]
		}
		at -= uint64(all[i].Weight)
	}
	return nil
}

// freeTries is on how many endpoints a request is tried that could not be sent at all.
const freeTries = 4

// silentTries is how often a request is sent that got not one byte of an answer before its connection ended. It is more than
// freeTries: when servers go one after the other, each try may meet one that has just gone, and none of them costs a backend work.
const silentTries = 12

// exchange sends the request to endpoints until one answers, and passes the answer on.
func (c *call) exchange(cl *cluster, to *table.Weighted, m *outgoing) error {
	want := choice{now: c.began}
	if limit := cl.state.Load().backend.Pool.Requests; cl.active.Add(1) > int64(limit) && limit > 0 {
		cl.active.Add(-1)
		return c.local(503, "too many requests for the backend")
	}
	defer cl.active.Add(-1)
	retries := 0
	for {
		s := cl.state.Load()
		c.wants(&want, s.backend)
		e := cl.pick(s, &want)
		if e == nil {
			if len(want.tried) == 0 {
				return c.local(503, "the backend has no endpoints")
			}
			if want.broke {
				return c.local(502, "the backend broke the connection")
			}
			return c.local(503, "no endpoint can be reached")
		}
		c.endpoint = e
		c.tries++
		if t := c.rule.Timeouts.Backend; t > 0 {
			c.tryDeadline = time.Now().Add(t)
		}
		e.active.Add(1)
		r, err := c.send1(e, s.backend.Protocol, m)
		if err == nil && !c.again(r.code, &retries) {
			err = c.pass(cl, e, to, r)
			e.done()
			return err
		}
		if err == nil {
			r.end(false)
			cl.observe(e, outcomeOf(r.code), time.Now())
			e.done()
			want.tried = append(want.tried, e)
			if len(want.tried) >= s.size {
				want.tried = want.tried[:0]
			}
			if !c.pause(backoff(c.rule.Retry, retries)) {
				return errClient
			}
			continue
		}
		e.done()
		if c.gone() {
			return errClient
		}
		done, err := c.failed(cl, e, err, &retries, &want)
		if done {
			return err
		}
	}
}

func (c *call) send1(e *endpoint, protocol table.Protocol, m *outgoing) (*response, error) {
	if protocol == table.HTTP2 && m.upgrade == "" {
		return e.roundTrip2(c, m)
	}
	return e.roundTrip1(c, m)
}

// wants is what the request asks of the balance.
func (c *call) wants(want *choice, b *table.Backend) {
	if c.rule.Session != nil {
		want.sticky = sessionOf(c.rule.Session, c.req.fields)
	}
	if b.Balance.Policy != table.Hash || want.keyed {
		return
	}
	name := b.Balance.Key.Name
	switch b.Balance.Key.Kind {
	case table.HashSource:
		want.key, want.keyed = c.req.client.Addr().String(), true
	case table.HashHeader:
		want.key, want.keyed = c.req.fields.get(name)
	case table.HashCookie:
		want.key, want.keyed = cookie(c.req.fields, name)
	case table.HashQuery:
		want.key, want.keyed = table.QueryValue(c.req.query, name)
	}
}

// again says that the code is one that the rule retries, and counts it.
func (c *call) again(code int, retries *int) bool {
	r := c.rule.Retry
	if r == nil || *retries >= r.Attempts || !c.replayable() || !slices.Contains(r.Codes, code) {
		return false
	}
	*retries++
	return true
}

func backoff(r *table.Retry, n int) time.Duration {
	d := r.Backoff
	if d == 0 {
		d = 25 * time.Millisecond
	}
	return min(d<<min(n-1, 10), 10*d)
}

// failed decides what follows on a try that got no answer: another one, or the error for the client.
func (c *call) failed(cl *cluster, e *endpoint, err error, retries *int, want *choice) (bool, error) {
	now := time.Now()
	want.now = now
	var early *notSent
	var late *broken
	var unseen *refused
	switch {
	case c.starved.Load():
		return true, c.local(408, "the request's body took too long")
	case errors.As(err, &unseen):
		return c.refused(e, want)
	case errors.Is(err, errFull):
		return true, c.local(503, "too many connections to the backend")
	case errors.As(err, &early):
		cl.observe(e, unreachable, now)
		if !c.deadline.IsZero() && now.After(c.deadline) {
			return true, c.local(504, "the request took too long")
		}
		want.tried = append(want.tried, e)
		if len(want.tried) < freeTries && (c.replayable() || c.send == nil) {
			return false, nil
		}
		if c.feed != nil {
			c.feed.stop()
		}
		return true, c.local(503, "the backend cannot be reached")
	}
	cl.observe(e, failed, now)
	if errors.As(err, &late) && late.silent && c.idempotent() && c.replayable() && c.tries < silentTries {
		// Closed under our hands: a kept connection, or one that waited in a server's backlog when that went. The endpoint of a kept one
		// may well be there still.
		if !late.reused || e.gone.Load() {
			want.tried = append(want.tried, e)
		}
		want.broke = true
		e.retire()
		return false, nil
	}
	if c.deadline.IsZero() || now.Before(c.deadline) {
		if r := c.rule.Retry; r != nil && *retries < r.Attempts && c.replayable() && (c.idempotent() || r.Reset) {
			*retries++
			want.tried = append(want.tried, e)
			if len(want.tried) >= cl.state.Load().size {
				want.tried = want.tried[:0]
			}
			if !c.pause(backoff(r, *retries)) {
				return true, errClient
			}
			return false, nil
		}
	}
	if isTimeout(err) {
		return true, c.local(504, "the backend took too long")
	}
	return true, c.local(502, "the backend broke the connection or its answer is malformed")
}

// refused decides what follows when a backend did not process the request: another endpoint, or the same one over another connection.
// That is no failure of the endpoint: servers say so when they go, or have enough to do.
func (c *call) refused(e *endpoint, want *choice) (bool, error) {
	if !c.deadline.IsZero() && want.now.After(c.deadline) {
		return c.giveUp(504, "the request took too long")
	}
	if c.refusals++; c.refusals >= freeTries {
		return c.giveUp(503, "the backend refuses the request")
	}
	want.tried = append(want.tried, e)
	if len(want.tried) >= e.cluster.state.Load().size {
		want.tried = want.tried[:0]
		if !c.pause(time.Duration(c.refusals) * 25 * time.Millisecond) {
			return true, errClient
		}
	}
	return false, nil
}

// giveUp answers with an error, when nothing reads the body any more.
func (c *call) giveUp(code int, reason string) (bool, error) {
	if c.feed != nil {
		c.feed.stop()
	}
	return true, c.local(code, reason)
}

// pass edits the answer and hands it to the client.
func (c *call) pass(cl *cluster, e *endpoint, to *table.Weighted, r *response) error {
	if o := outcomeOf(r.code); o == succeeded {
		cl.observe(e, o, c.began)
	} else {
		cl.observe(e, o, time.Now())
	}
	if r.upgraded != nil {
		c.code = 101
		err := c.out.switchProtocols(c, r)
		return err
	}
	f := r.fields.strip().remove("content-length")
	if c.rule.CORS != nil {
		f = corsFields(f, c.rule.CORS, &c.req)
	}
	if s := c.rule.Session; s != nil && sessionOf(s, c.req.fields) != e.token {
		if set := sessionField(s, e.token); isToken(set.name) && cleanValue(set.value) {
			f = append(f, set)
		}
	}
	f = edit(f, c.rule.Response, nil)
	f = edit(f, to.Response, nil)
	r.fields = f
	c.code = r.code
	err := c.out.respond(r)
	r.end(err == nil)
	return err
}

// answer sends an answer of the proxy's own.
func (c *call) answer(r *response) error {
	if c.rule != nil && c.rule.CORS != nil {
		r.fields = corsFields(r.fields, c.rule.CORS, &c.req)
	}
	return c.answered(r)
}

// answered sends an answer that says itself who may read it.
func (c *call) answered(r *response) error {
	if c.rule != nil {
		r.fields = edit(r.fields, c.rule.Response, nil)
	}
	c.code = r.code
	return c.out.respond(r)
}

// local sends an error of the proxy's own; for gRPC in its own form.
func (c *call) local(code int, reason string) error {
	c.reason = reason
	if c.out.started() {
		return errClient
	}
	if c.req.major == 2 && strings.HasPrefix(c.req.fields.value("content-type"), "application/grpc") {
		c.code = code
		return c.out.respond(&response{code: 200, length: -2, fields: fields{
			{"Content-Type", "application/grpc"}, {"Grpc-Status", grpcStatus(code)}, {"Grpc-Message", reason}}})
	}
	text := reason + "\n"
	return c.answer(&response{code: code, length: int64(len(text)), body: strings.NewReader(text),
		fields: fields{{"Content-Type", "text/plain; charset=utf-8"}}})
}

// grpcStatus is the gRPC code for an HTTP status (gRPC's http-grpc-status-mapping).
func grpcStatus(code int) string {
	switch code {
	case 400:
		return "13"
	case 401:
		return "16"
	case 403:
		return "7"
	case 404:
		return "12"
	case 429, 502, 503, 504:
		return "14"
	}
	return "2"
}

// mirror sends copies to the rule's mirrors, if there is room for them.
func (c *call) mirror(m *outgoing) {
	for i := range c.rule.Mirrors {
		mirror := &c.rule.Mirrors[i]
		if mirror.Denominator > 0 && rand.Uint32N(mirror.Denominator) >= mirror.Numerator || c.streamed() || m.upgrade != "" {
			continue
		}
		cl, _ := c.view.clusters.Get(mirror.Backend)
		if cl == nil || !c.p.startMirror() {
			continue
		}
		shadow := &call{p: c.p, view: c.view, listener: c.listener, out: void{}, rule: mirrorRule, began: c.began,
			buffer: slices.Clone(c.buffer), whole: c.whole, req: c.req}
		shadow.req.fields = slices.Clone(c.req.fields)
		shadow.deadline = c.began.Add(mirrorTimeout)
		copied := *m
		copied.fields = slices.Clone(m.fields)
		go func() {
			defer c.p.endMirror()
			_ = shadow.exchange(cl, &table.Weighted{}, &copied)
		}()
	}
}

const mirrorTimeout = 15 * time.Second

var mirrorRule = &table.Rule{Name: "mirror"}

func listenerPort(l *table.Listener, local netip.AddrPort) uint16 {
	switch {
	case l.Port != 0:
		return l.Port
	case l.Address.Port() != 0 && !l.Transparent:
		return l.Address.Port()
	}
	return local.Port()
}

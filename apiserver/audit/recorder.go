package audit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Recorder writes the events that a policy asks for. It is safe for concurrent use.
type Recorder struct {
	policy *Policy
	sinks  []Sink
	log    *slog.Logger
	counts Counts
	// complained is the last time that a failing sink was logged, in seconds: once a second is enough.
	complained atomic.Int64
}

// Counts are the numbers for metrics, since the start.
type Counts struct {
	// Events is how many events were handed to the sinks, Errors how many a sink could not take.
	Events, Errors atomic.Int64
	// Levels is how many events there were at each level.
	Levels [RequestResponse + 1]atomic.Int64
}

// Record is one event on its way to the sinks.
type Record struct {
	// JSON is the event of audit.k8s.io/v1 with its kind, followed by a newline. It is only valid during the call.
	JSON []byte
	// First tells the event of stage RequestReceived, before anything was done.
	First bool

	event *Event
	stage Stage
	at    time.Time
}

// Legacy gives the line of --audit-log-format=legacy.
func (r *Record) Legacy() []byte { return r.event.legacy(r.stage, r.at) }

// Item gives the event as it stands in an EventList; the caller owns it.
func (r *Record) Item() []byte { return r.event.appendJSON(nil, r.stage, r.at, false) }

// Sink takes events.
type Sink interface {
	// Write takes an event. An error is counted and logged, and refuses the request if the sink is Strict and the event the first.
	Write(*Record) error
	// Strict tells whether a request that cannot be recorded must not be carried out.
	Strict() bool
	// Close writes what is outstanding until ctx ends.
	Close(ctx context.Context) error
}

// New makes a Recorder for at least one sink.
func New(policy *Policy, log *slog.Logger, sinks ...Sink) *Recorder {
	return &Recorder{policy: policy, sinks: sinks, log: log}
}

// Counts returns the numbers for metrics.
func (rec *Recorder) Counts() *Counts { return &rec.counts }

// Close closes the sinks. No request may be under way.
func (rec *Recorder) Close(ctx context.Context) error {
	var errs []error
	for _, s := range rec.sinks {
		errs = append(errs, s.Close(ctx))
	}
	return errors.Join(errs...)
}

var lines = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

// keepLine is the greatest buffer that goes back into the pool.
const keepLine = 64 << 10

func (rec *Recorder) write(e *Event, s Stage, now time.Time) error {
	buf := lines.Get().(*[]byte)
	line := append(e.appendJSON((*buf)[:0], s, now, true), '\n')
	defer func() {
		if cap(line) <= keepLine {
			*buf = line
			lines.Put(buf)
		}
	}()
	rec.counts.Events.Add(1)
	rec.counts.Levels[e.decision.Level].Add(1)
	r := Record{JSON: line, First: s == RequestReceived, event: e, stage: s, at: now}
	var refused error
	for _, sink := range rec.sinks {
		if err := sink.Write(&r); err != nil {
			rec.failed(err, now)
			if r.First && sink.Strict() {
				refused = err
			}
		}
	}
	return refused
}

func (rec *Recorder) failed(err error, now time.Time) {
	rec.counts.Errors.Add(1)
	if last := rec.complained.Load(); now.Unix() > last && rec.complained.CompareAndSwap(last, now.Unix()) {
		rec.log.Error("an audit event could not be written", "error", err, "lost", rec.counts.Errors.Load())
	}
}

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
)

// fieldManager is who managedFields name, as upstream's controllers.
const fieldManager = "kube-controller-manager"

// maxParallel is how many writes of one pass are under way at once.
const maxParallel = 64

// errConflict says that a write met a newer version.
var errConflict = errors.New("conflict")

// pass plans and writes once for one key.
func (r *runner) pass(ctx context.Context, key Key) (o outcome, after time.Duration, err error) {
	ctx, cancel := context.WithTimeout(client.WithUser(ctx, r.user), r.Timeout)
	defer cancel()
	if !r.engine.strict {
		defer func() {
			if p := recover(); p != nil {
				o, err = failed, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
	}
	plan, err := r.Plan(r.engine.client.Snapshot(), key, r.engine.now())
	if err != nil {
		return failed, 0, err
	}
	err = r.carryOut(ctx, key, plan)
	switch {
	case err == nil:
		return done, plan.After, nil
	case errors.Is(err, errConflict):
		return conflict, 0, err
	}
	if r.Failed != nil && ctx.Err() == nil {
		told := r.Failed(r.engine.client.Snapshot(), key, r.engine.now(), err)
		if err := r.carryOut(ctx, key, told); err != nil && !errors.Is(err, errConflict) {
			r.engine.log.Debug("failure could not be told", "loop", r.Name, "key", key.String(), "error", err)
		}
	}
	return failed, 0, err
}

// carryOut does what a plan says.
func (r *runner) carryOut(ctx context.Context, key Key, plan Plan) error {
	for i := range plan.Writes {
		if err := r.permit(&plan.Writes[i]); err != nil {
			return err
		}
	}
	if plan.Effect != nil && r.Apply != nil {
		if err := r.Apply(ctx, key, plan.Effect); err != nil {
			return err
		}
	}
	if b, ok := r.engine.client.(client.Batcher); ok && plan.Together && len(plan.Writes) > 0 {
		if err := createAll(ctx, b, plan.Writes); err != nil {
			return err
		}
	} else if plan.Parallel && len(plan.Writes) > 1 && !r.engine.ordered {
		if err := r.writeParallel(ctx, plan.Writes); err != nil {
			return err
		}
	} else {
		for i := range plan.Writes {
			if err := r.write(ctx, &plan.Writes[i]); err != nil {
				return err
			}
		}
	}
	for _, ev := range plan.Events {
		r.record(&ev)
	}
	return nil
}

// createAll carries out the creates of a plan in one transaction.
func createAll(ctx context.Context, b client.Batcher, writes []Write) error {
	objs := make([]client.New, len(writes))
	for i, w := range writes {
		if w.Verb != Create {
			return fmt.Errorf("%s %s: only creates can be made together", w.Verb, w.target())
		}
		objs[i] = client.New{Resource: w.Resource, Object: w.Object}
	}
	err := b.CreateAll(ctx, objs)
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		return fmt.Errorf("%w: %w", errConflict, err)
	}
	return err
}

// permit refuses a write that the loop did not declare.
func (r *runner) permit(w *Write) error {
	for _, out := range r.Outputs {
		if out.Resource != w.Resource && out.Resource != AnyResource || out.Subresource != w.Subresource {
			continue
		}
		for _, v := range out.Verbs {
			if v == w.Verb {
				return nil
			}
		}
	}
	err := fmt.Errorf("loop %s may not %s %s: it is not among its outputs", r.Name, w.Verb, w.target())
	r.engine.mu.Lock()
	r.stats.Refused++
	r.engine.mu.Unlock()
	r.engine.log.Error("write refused", "loop", r.Name, "error", err)
	if r.engine.strict {
		panic(err)
	}
	return err
}

func (w *Write) target() string {
	if w.Subresource != "" {
		return w.Resource + "/" + w.Subresource
	}
	return w.Resource
}

// writeParallel carries out writes side by side. Creates begin with one; each
// batch that succeeds allows one of double size. After a failure no
// further batch starts.
func (r *runner) writeParallel(ctx context.Context, writes []Write) error {
	size := maxParallel
	if writes[0].Verb == Create {
		size = 1
	}
	for len(writes) > 0 {
		n := min(size, len(writes))
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { errs[i] = r.write(ctx, &writes[i]) })
		}
		wg.Wait()
		if err := worst(errs); err != nil {
			return err
		}
		writes = writes[n:]
		size = min(size*2, maxParallel)
	}
	return nil
}

// worst picks an error that needs back-off over one that does not.
func worst(errs []error) error {
	var found error
	for _, err := range errs {
		if err != nil && (found == nil || errors.Is(found, errConflict)) {
			found = err
		}
	}
	return found
}

// write carries out one write and records what the loop has to say of it.
func (r *runner) write(ctx context.Context, w *Write) error {
	c := r.engine.client
	var err error
	switch w.Verb {
	case Create:
		err = r.tell(w, func() (api.Object, error) {
			return c.Create(ctx, w.Resource, w.Object, client.WriteOptions{Subresource: w.Subresource, FieldManager: fieldManager})
		})
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		if apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("%w: %w", errConflict, err)
		}
	case Update:
		err = r.tell(w, func() (api.Object, error) {
			return c.Update(ctx, w.Resource, w.Object, client.WriteOptions{Subresource: w.Subresource, FieldManager: fieldManager})
		})
	case Delete:
		err = r.tell(w, func() (api.Object, error) {
			return nil, c.Delete(ctx, client.Ref{Resource: w.Resource, Namespace: w.Namespace, Name: w.Name},
				client.DeleteOptions{UID: w.UID, ResourceVersion: w.ResourceVersion, Propagation: w.Propagation, GraceSeconds: w.GraceSeconds})
		})
	default:
		return fmt.Errorf("loop %s: unknown verb %q", r.Name, w.Verb)
	}
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err) && w.Verb != Create:
		return nil
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: %w", errConflict, err)
	}
	return err
}

// tell does a write and records the event that belongs to how it went.
func (r *runner) tell(w *Write, do func() (api.Object, error)) error {
	obj, err := do()
	switch {
	case err == nil && w.OnSuccess != nil:
		r.record(w.OnSuccess(obj))
	case err != nil && w.OnFailure != nil && !passedOver(w, err):
		r.record(w.OnFailure(err))
	}
	return err
}

// passedOver tells the errors that are no failure of the loop.
func passedOver(w *Write, err error) bool {
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return true
	case w.Verb == Create:
		return apierrors.IsAlreadyExists(err)
	}
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err)
}

func (r *runner) record(ev *Event) {
	if ev != nil {
		r.engine.recorder.Record(r.user, corev1.EventSource{Component: r.Source}, *ev)
	}
}

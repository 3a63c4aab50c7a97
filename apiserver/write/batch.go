package write

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// CreateAll adds objs[i] through targets[i], all in one transaction: either every one is there
// afterwards, at one revision, or none is. Each needs a name of its own; none sees the others in
// admission. It fails with AlreadyExists if one is there, and with a conflict if what
// one was decided on has changed meanwhile; the caller looks again and decides anew.
func (c *Chain) CreateAll(ctx context.Context, targets []Target, objs []api.Object) error {
	txn := store.Txn{Require: map[store.Key]store.Revision{}}
	at := map[store.Key]*Target{}
	snap := c.Store.Snapshot()
	for i, obj := range objs {
		t := &targets[i]
		if err := t.begin(obj); err != nil {
			return err
		}
		st, err := c.stage(ctx, t, obj, snap)
		if st.release != nil {
			defer st.release()
		}
		if err != nil {
			return err
		}
		at[st.op.Key] = t
		require, also := st.req.Effects()
		for key, rev := range require {
			txn.Require[key] = rev
		}
		txn.Ops = append(txn.Ops, st.op)
		for _, op := range also {
			txn.Ops = with(txn.Ops, op)
		}
	}
	_, _, err := c.Store.Commit(ctx, txn)
	var conflict *store.ConflictError
	var refused apierrors.APIStatus // by a change that admission added
	switch {
	case errors.As(err, &conflict):
		if t := at[conflict.Key]; t != nil {
			return alreadyExists(t, conflict.Key.Name, conflict.Current, false)
		}
		return Conflict(targets[0].Kind, conflict.Key.Name, OptimisticLock)
	case err != nil && ctx.Err() == nil && !errors.As(err, &refused):
		return apierrors.NewInternalError(err)
	}
	return err
}

// with adds an op to those of a transaction. Two changes of one object (a quota that several of the new objects are charged to)
// become one.
func with(ops []store.Op, op store.Op) []store.Op {
	for i := range ops {
		first, second := ops[i].Change, op.Change
		if ops[i].Key != op.Key || first == nil || second == nil {
			continue
		}
		ops[i].Change = func(current *store.Entry) (any, error) {
			obj, err := first(current)
			if err != nil {
				return nil, err
			}
			between := store.Entry{Key: op.Key, Object: obj}
			if current != nil {
				between.Revision, between.Created = current.Revision, current.Created
			}
			return second(&between)
		}
		return ops
	}
	return append(ops, op)
}

// Package write is the chain that every change to an object passes, whether it
// comes over HTTP or from a part of this program: defaults, admission, what a client may not set,
// validation, and a commit on condition of what was read.
//
// It owns names, UIDs, generations and deletion. It knows no wire format, no users'
// rights and no kinds; it never holds a lock while it waits for the store.
package write

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/managed"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Chain carries out writes. It is safe for concurrent use; the fields are set before the first.
type Chain struct {
	Store    store.Store
	Registry *api.Registry
	Now      func() time.Time
	Log      *slog.Logger
	// Admission plug-ins, in order.
	Admission admission.Chain
	// Allocate fills what only the server can choose (cluster IPs, node ports) after
	// PrepareCreate or PrepareUpdate and before validation. release is called when the commit
	// is over, whatever its end. Nil where nothing is allocated.
	Allocate func(r *admission.Request) (release func(), err error)
	// Fields keeps metadata.managedFields; nil leaves them as they come.
	Fields *managed.Tracker
	// Stale tells that an entry lies on the disk in another form than would be written today (encrypted with a former key), so that
	// writing it without a change has an effect. Nil: none does.
	Stale func(*store.Entry) bool
}

// Target says through which endpoint of which kind a write goes, and for whom.
type Target struct {
	Kind        *api.Kind
	Version     string // as requested, "" for the hub
	Subresource string
	Namespace   string
	Name        string // "" for a create that names the object in its body
	User        client.User
	// Local says that a part of this program writes: what its user may do is not asked.
	Local  bool
	DryRun bool
	// Options are the options of the request as admission is shown them; nil for writers in this process.
	Options runtime.Object
	// Manager is who owns the fields that are written (server-side apply).
	Manager string
	// Warn sends a warning to the client; nil drops it.
	Warn func(text string)
	// Annotate is for the audit log, as admission.Request has it.
	Annotate       func(key, value string)
	AnnotateBodies bool
	// Admitted says that admission has passed this already, as part of something else (an eviction).
	Admitted bool

	// kept says that the object comes with its managedFields.
	kept bool
}

// OptimisticLock is why an update on condition of an older revision is refused.
const OptimisticLock = "the object has been modified; please apply your changes to the latest version and try again"

// maxNameAttempts is how many generated names are tried.
const maxNameAttempts = 8

// Key is where an object of a kind is stored.
func Key(k *api.Kind, namespace, name string) store.Key {
	key := store.Key{Resource: Stored(k), Namespace: namespace, Name: name}
	if !k.Namespaced {
		key.Namespace = ""
	}
	return key
}

// Stored is the resource in whose place objects of a kind are stored.
func Stored(k *api.Kind) string {
	if k.StoredAs != "" {
		return k.StoredAs
	}
	return k.Name()
}

func (t *Target) warn(text string) {
	if t.Warn != nil {
		t.Warn(text)
	}
}

// strategy is the rule set of the endpoint.
func (t *Target) strategy() *api.Strategy {
	if t.Subresource != "" {
		if s := t.Kind.Subresource(t.Subresource); s != nil && s.Strategy != nil {
			return s.Strategy
		}
	}
	return &t.Kind.Strategy
}

func (t *Target) request(op admission.Operation, obj, old api.Object, snap store.Snapshot, now time.Time) *admission.Request {
	return &admission.Request{
		Operation: op, Kind: t.Kind, Version: t.Version, Subresource: t.Subresource,
		Namespace: t.Namespace, Name: t.Name, Object: obj, Old: old,
		User: t.User, Local: t.Local, DryRun: t.DryRun, Options: t.Options, Snapshot: snap, Now: now, Warn: t.warn, Annotate: t.Annotate, AnnotateBodies: t.AnnotateBodies,
	}
}

// mutate runs the first half of admission.
func (c *Chain) mutate(ctx context.Context, t *Target, req *admission.Request) error {
	if t.Admitted {
		return nil
	}
	return c.Admission.Mutate(ctx, req)
}

// validate runs the second half of admission.
func (c *Chain) validate(ctx context.Context, t *Target, req *admission.Request) error {
	if t.Admitted {
		return nil
	}
	return c.Admission.Validate(ctx, req)
}

// seconds is a time as API objects hold it.
func seconds(t time.Time) metav1.Time { return metav1.NewTime(t.UTC().Truncate(time.Second)) }

// Create adds an object, which belongs to the chain from the call on. The entry is that which was
// stored, or for a dry run would have been (with revision 0).
func (c *Chain) Create(ctx context.Context, t Target, obj api.Object) (*store.Entry, error) {
	if err := t.begin(obj); err != nil {
		return nil, err
	}
	generated := obj.GetName() == "" && obj.GetGenerateName() != ""
	for attempt := 1; ; attempt++ {
		try := obj
		if generated && attempt < maxNameAttempts {
			try = obj.DeepCopyObject().(api.Object)
		}
		entry, err := c.create(ctx, &t, try, c.Store.Snapshot())
		var again *retryError
		switch {
		case errors.As(err, &again):
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			obj.SetUID("")
		case generated && apierrors.IsAlreadyExists(err) && attempt < maxNameAttempts:
		default:
			return entry, err
		}
	}
}

// begin does with a new object what needs no state: it takes out what a client may not set, and
// fills in defaults.
func (t *Target) begin(obj api.Object) error {
	clearType(obj)
	wipe(obj)
	if err := matchNamespace(t, obj); err != nil {
		return err
	}
	dedupOwners(t, obj, "")
	if t.Kind.Default != nil {
		t.Kind.Default(obj)
	}
	return nil
}

// retryError says that what a request was decided on has changed meanwhile.
type retryError struct{ key store.Key }

func (e *retryError) Error() string { return "conflict at " + e.key.String() }

// create is one attempt on one snapshot.
func (c *Chain) create(ctx context.Context, t *Target, obj api.Object, snap store.Snapshot) (*store.Entry, error) {
	generated := obj.GetName() == "" && obj.GetGenerateName() != ""
	st, err := c.stage(ctx, t, obj, snap)
	if st.release != nil {
		defer st.release()
	}
	if err != nil {
		return nil, err
	}
	key := st.op.Key
	if t.DryRun {
		if e := snap.Get(key); e != nil {
			return nil, alreadyExists(t, key.Name, e, generated)
		}
		return &store.Entry{Key: key, Object: st.op.Object}, nil
	}
	entry, err := c.commit(ctx, t.Kind, st.op, st.req)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		if conflict.Key == key {
			return nil, alreadyExists(t, key.Name, conflict.Current, generated)
		}
		return nil, &retryError{conflict.Key}
	}
	return entry, err
}

// staged is a create that only needs to be committed.
type staged struct {
	op      store.Op
	req     *admission.Request
	release func() // to be called when the commit is over; may be nil, and is set on error too
}

// stage takes a new object through admission and validation.
func (c *Chain) stage(ctx context.Context, t *Target, obj api.Object, snap store.Snapshot) (st staged, err error) {
	now := c.Now()
	c.track(ctx, t, obj, nil, now)
	fields := obj.GetManagedFields()
	req := t.request(admission.Create, obj, nil, snap, now)
	if err := c.mutate(ctx, t, req); err != nil {
		return st, err
	}
	obj = req.Object
	c.retrack(t, obj, fields)
	dedupOwners(t, obj, afterAdmission)
	obj.SetCreationTimestamp(seconds(now))
	obj.SetUID(uuid.NewUUID())
	if obj.GetName() == "" && obj.GetGenerateName() != "" {
		obj.SetName(GenerateName(obj.GetGenerateName()))
	}
	req.Name = obj.GetName()
	st.req = req
	if st.release, err = c.settleCreate(ctx, t, req); err != nil {
		return st, err
	}
	if obj.GetResourceVersion() != "" { // upstream's store refuses it, after admission
		return st, errors.New("resourceVersion should not be set on objects to be created")
	}
	key := Key(t.Kind, obj.GetNamespace(), obj.GetName())
	if obj, err = save(ctx, t.Kind, obj); err != nil {
		return st, err
	}
	st.op = store.Op{Key: key, Object: obj, Expect: store.ExpectAbsent}
	return st, nil
}

// settleCreate runs the part after mutation: prepare, allocate, validate.
func (c *Chain) settleCreate(ctx context.Context, t *Target, req *admission.Request) (release func(), err error) {
	obj, s := req.Object, t.strategy()
	obj.SetGeneration(0)
	if t.Kind.Desired != nil {
		obj.SetGeneration(1)
	}
	obj.SetSelfLink("")
	if s.PrepareCreate != nil {
		s.PrepareCreate(obj)
	}
	if c.Allocate != nil {
		if release, err = c.Allocate(req); err != nil {
			return release, err
		}
	}
	if errs := c.validateCreate(t, s, obj); len(errs) > 0 {
		return release, Invalid(t.Kind, obj.GetName(), errs)
	}
	if s.Warnings != nil {
		for _, w := range s.Warnings(obj, nil) {
			t.warn(w)
		}
	}
	return release, c.validate(ctx, t, req)
}

func (c *Chain) validateCreate(t *Target, s *api.Strategy, obj api.Object) field.ErrorList {
	name := t.Kind.ValidateName
	if name == nil {
		name = validation.NameIsDNSSubdomain
	}
	errs := checkMeta(t.Kind, obj, name, field.NewPath("metadata"))
	if s.Validate != nil {
		errs = append(errs, s.Validate(obj)...)
	}
	return errs
}

// checkMeta checks metadata.
func checkMeta(k *api.Kind, obj api.Object, name func(string, bool) []string, path *field.Path) field.ErrorList {
	if !k.AnyFinalizer {
		return validate.Meta(obj, k.Namespaced, name, path)
	}
	return validation.ValidateObjectMetaAccessor(obj, k.Namespaced, name, path)
}

// save brings a new state into the form in which it is stored.
func save(ctx context.Context, k *api.Kind, obj api.Object) (api.Object, error) {
	if k.Save == nil {
		return obj, nil
	}
	return k.Save(ctx, obj)
}

// loaded is an entry as the kind's rules know it: in the hub version, with the defaults of today.
func loaded(ctx context.Context, k *api.Kind, e *store.Entry) (*store.Entry, error) {
	if e == nil {
		return nil, nil
	}
	have := e.Object.(api.Object)
	obj, err := k.Loaded(ctx, have)
	if err != nil || obj == have {
		return e, err
	}
	return &store.Entry{Key: e.Key, Revision: e.Revision, Created: e.Created, Object: obj}, nil
}

// commit puts one object, with what admission added.
func (c *Chain) commit(ctx context.Context, k *api.Kind, op store.Op, req *admission.Request) (*store.Entry, error) {
	txn := store.Txn{Ops: []store.Op{op}, Relaxed: k.Relaxed}
	if req != nil {
		require, also := req.Effects()
		txn.Require = require
		txn.Ops = append(txn.Ops, also...)
	}
	_, entries, err := c.Store.Commit(ctx, txn)
	if err != nil {
		var conflict *store.ConflictError
		var refused apierrors.APIStatus // by a change that admission added
		if errors.As(err, &conflict) || errors.As(err, &refused) || ctx.Err() != nil {
			return nil, err
		}
		return nil, apierrors.NewInternalError(err)
	}
	return entries[0], nil
}

// Update is one change of a present object.
type Update struct {
	// Make gives the new hub object from the present one, which it may not change; nil
	// stands for an absent object. What it returns belongs to the chain. It runs again when
	// another write came between.
	Make func(current *store.Entry) (api.Object, error)
	// UID is a condition, "" for none.
	UID types.UID
	// MayCreate creates the object if there is none, beside what the Kind allows.
	MayCreate bool
	// AuthorizeCreate is asked before an absent object is created; nil allows it.
	AuthorizeCreate func() error
	// Raw passes over defaults, the strategy and validation: for endpoints that change one thing
	// by rules of their own. Raw changes belong to no field manager.
	Raw bool
	// Tracked says that Make gives the object with its managedFields up to date (apply, scale).
	Tracked bool
	// View, if not nil, gives what admission is shown in place of the object (scale).
	View func(obj api.Object) api.Object
	// Merge puts a View that admission has replaced back into the object, which the caller owns. Nil drops such changes.
	Merge func(obj, view api.Object) (api.Object, error)
	// Created shows admission the View as something new, since it is what the client creates (pods/binding).
	Created bool
	// As is the kind that admission is told the request is for, if it came by another path than that of the object (bindings).
	As *api.Kind
}

// Update changes an object. The entry is the new version, or the present one if nothing changed,
// or the last state of an object that the update removed because its last finalizer went.
func (c *Chain) Update(ctx context.Context, t Target, u Update) (entry *store.Entry, created bool, err error) {
	for {
		snap := c.Store.Snapshot()
		var current *store.Entry
		if current, err = loaded(ctx, t.Kind, snap.Get(Key(t.Kind, t.Namespace, t.Name))); err != nil {
			return nil, false, err
		}
		if current == nil {
			created = true
			entry, err = c.createByUpdate(ctx, &t, u, snap)
		} else {
			created = false
			entry, err = c.update(ctx, &t, u, snap, current)
		}
		var again *retryError
		if !errors.As(err, &again) {
			return entry, created && err == nil, err
		}
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
	}
}

func (c *Chain) createByUpdate(ctx context.Context, t *Target, u Update, snap store.Snapshot) (*store.Entry, error) {
	if !u.MayCreate && (!t.Kind.CreateOnUpdate || t.Subresource != "") {
		return nil, apierrors.NewNotFound(t.Kind.GroupResource(), t.Name)
	}
	if u.UID != "" {
		return nil, c.uidConflict(t, u.UID, "")
	}
	obj, err := u.Make(nil)
	if err != nil {
		return nil, err
	}
	if u.AuthorizeCreate != nil {
		if err := u.AuthorizeCreate(); err != nil {
			return nil, err
		}
	}
	clearType(obj)
	wipe(obj)
	obj.SetResourceVersion("")
	if err := matchNamespace(t, obj); err != nil {
		return nil, err
	}
	if t.Kind.Default != nil {
		t.Kind.Default(obj)
	}
	t.kept = u.Tracked
	entry, err := c.create(ctx, t, obj, snap)
	if apierrors.IsAlreadyExists(err) {
		return nil, &retryError{Key(t.Kind, t.Namespace, t.Name)}
	}
	return entry, err
}

// update is one attempt on one version.
func (c *Chain) update(ctx context.Context, t *Target, u Update, snap store.Snapshot, current *store.Entry) (*store.Entry, error) {
	old := current.Object.(api.Object)
	if u.UID != "" && u.UID != old.GetUID() {
		return nil, c.uidConflict(t, u.UID, old.GetUID())
	}
	obj, err := u.Make(current)
	if err != nil {
		return nil, err
	}
	if t.Local {
		// Loops change objects as they stand in the store.
		if obj, err = t.Kind.Loaded(ctx, obj); err != nil {
			return nil, err
		}
	}
	clearType(obj)
	if err := matchNamespace(t, obj); err != nil {
		return nil, err
	}
	if !u.Raw && t.Kind.Default != nil {
		t.Kind.Default(obj)
	}
	req := t.request(admission.Update, obj, old, snap, c.Now())
	dedupOwners(t, obj, "")
	if t.kept = u.Tracked || u.Raw; !t.kept {
		c.track(ctx, t, obj, old, req.Now)
	}
	fields := obj.GetManagedFields()
	view := u.show(req, obj, old)
	if err := c.mutate(ctx, t, req); err != nil {
		return nil, err
	}
	switch {
	case u.View == nil:
		obj = req.Object
	case u.Merge != nil && req.Object != view:
		if obj, err = u.Merge(obj, req.Object); err != nil {
			return nil, err
		}
	}
	dedupOwners(t, obj, afterAdmission)
	c.retrack(t, obj, fields)
	if err := checkRevision(t, obj, old); err != nil {
		return nil, err
	}
	if !u.Raw {
		release, err := c.settleUpdate(t, req, obj, old)
		if release != nil {
			defer release()
		}
		if err != nil {
			return nil, err
		}
	}
	if err := c.validate(ctx, t, req); err != nil {
		return nil, err
	}
	return c.put(ctx, t, req, obj, current)
}

// show gives admission the View in place of the object, and returns it.
func (u *Update) show(req *admission.Request, obj, old api.Object) api.Object {
	if u.View == nil {
		return nil
	}
	req.Object, req.Old = u.View(obj), nil
	if u.As != nil {
		req.Kind, req.Version, req.Subresource = u.As, u.As.Hub().Name, ""
	}
	if u.Created {
		req.Operation = admission.Create
	} else {
		req.Old = u.View(old)
	}
	return req.Object
}

// checkRevision compares the revision that an update names with the one that is there, and makes them equal.
func checkRevision(t *Target, obj, old api.Object) error {
	switch rv := obj.GetResourceVersion(); rv {
	case old.GetResourceVersion():
	case "", "0":
		if !t.Kind.UnconditionalUpdate {
			return apierrors.NewInvalid(schema.GroupKind{Group: t.Kind.Group, Kind: t.Kind.Resource}, t.Name, field.ErrorList{
				field.Invalid(field.NewPath("metadata", "resourceVersion"), uint64(0), "must be specified for an update")})
		}
		obj.SetResourceVersion(old.GetResourceVersion())
	default:
		return Conflict(t.Kind, t.Name, OptimisticLock)
	}
	return nil
}

// settleUpdate runs the part after mutation: prepare, allocate, validate.
func (c *Chain) settleUpdate(t *Target, req *admission.Request, obj, old api.Object) (release func(), err error) {
	s := t.strategy()
	obj.SetGeneration(old.GetGeneration())
	obj.SetSelfLink("")
	if s.PrepareUpdate != nil {
		keepFields(obj, func() { s.PrepareUpdate(obj, old) })
	}
	if t.Subresource != "status" && t.Kind.Desired != nil && obj.GetGeneration() == old.GetGeneration() && t.Kind.Desired(obj, old) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
	keepSystemFields(obj, old)
	if c.Allocate != nil {
		if release, err = c.Allocate(req); err != nil {
			return release, err
		}
	}
	path := field.NewPath("metadata")
	errs := checkMeta(t.Kind, obj, pathSegment, path)
	if !t.Kind.AnyFinalizer {
		errs = append(errs, validate.MetaUpdate(obj, old, path)...)
	} else {
		errs = append(errs, validation.ValidateObjectMetaAccessorUpdate(obj, old, path)...)
	}
	if s.ValidateUpdate != nil {
		errs = append(errs, s.ValidateUpdate(obj, old)...)
	}
	if len(errs) > 0 {
		return release, Invalid(t.Kind, obj.GetName(), errs)
	}
	if s.Warnings != nil {
		for _, w := range s.Warnings(obj, old) {
			t.warn(w)
		}
	}
	return release, nil
}

// keepSystemFields takes from old what no update may change.
func keepSystemFields(obj, old api.Object) {
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	if old.GetDeletionTimestamp() != nil {
		obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	}
	if old.GetDeletionGracePeriodSeconds() != nil && obj.GetDeletionGracePeriodSeconds() == nil {
		obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	}
}

// put commits an update: nothing if nothing changed, a removal if the last finalizer of a deleted object went.
func (c *Chain) put(ctx context.Context, t *Target, req *admission.Request, obj api.Object, current *store.Entry) (*store.Entry, error) {
	old := current.Object.(api.Object)
	managed.SettleTimes(obj, old, func() bool { return unchanged(obj, old) })
	same := unchanged(obj, old)
	obj, err := save(ctx, t.Kind, obj)
	if err != nil {
		return nil, err
	}
	op := store.Op{Key: current.Key, Object: obj, Expect: current.Revision}
	switch {
	case finished(t.Kind, obj, old):
		op.Delete = true
	case same && !migrates(t.Kind, req.Snapshot.Get(current.Key), obj) && (c.Stale == nil || !c.Stale(current)):
		return current, nil
	}
	if t.DryRun {
		return &store.Entry{Key: current.Key, Object: obj}, nil
	}
	entry, err := c.commit(ctx, t.Kind, op, req)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return nil, &retryError{conflict.Key}
	}
	if op.Delete && err == nil {
		return &store.Entry{Key: current.Key, Object: obj}, nil
	}
	return entry, err
}

// migrates tells that an object is stored in another version than it would be today, so that writing it
// without a change brings it into that of today.
func migrates(k *api.Kind, stored *store.Entry, obj api.Object) bool {
	if k.Hub().Convert == nil || stored == nil {
		return false
	}
	return stored.Object.(api.Object).GetObjectKind().GroupVersionKind() != obj.GetObjectKind().GroupVersionKind()
}

// unchanged tells whether two versions of an object say the same. It begins at the back, with the status, which is what most
// updates change: they are told apart at once.
func unchanged(a, b api.Object) bool {
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	if x.Kind() != reflect.Struct || x.Type() != y.Type() {
		return equality.Semantic.DeepEqual(a, b)
	}
	for i := x.NumField() - 1; i >= 0; i-- {
		if x.Type().Field(i).IsExported() && !equality.Semantic.DeepEqual(x.Field(i).Addr().Interface(), y.Field(i).Addr().Interface()) {
			return false
		}
	}
	return true
}

func (c *Chain) uidConflict(t *Target, want, have types.UID) error {
	path := "/registry/" + t.Kind.Resource
	if t.Kind.Namespaced {
		path += "/" + t.Namespace
	}
	return Conflict(t.Kind, t.Name, fmt.Sprintf(
		"StorageError: invalid object, Code: 4, Key: %s/%s, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: %v, UID in object meta: %v",
		path, t.Name, want, have))
}

// Conflict is a 409 for an object that is not as the request expects.
func Conflict(k *api.Kind, name, why string) error {
	return apierrors.NewConflict(k.GroupResource(), name, errors.New(why))
}

// Invalid is a 422 with field errors.
func Invalid(k *api.Kind, name string, errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: k.Group, Kind: k.Kind}, name, errs)
}

func alreadyExists(t *Target, name string, current *store.Entry, generated bool) error {
	if generated {
		return apierrors.NewGenerateNameConflict(t.Kind.GroupResource(), name, 1)
	}
	err := apierrors.NewAlreadyExists(t.Kind.GroupResource(), name)
	if current != nil && current.Object.(api.Object).GetDeletionTimestamp() != nil {
		err.ErrStatus.Message = "object is being deleted: " + err.ErrStatus.Message
	}
	return err
}

// GenerateName appends five random letters and digits to a prefix, which is cut so that the
// name has at most 63 characters.
func GenerateName(prefix string) string {
	const most = 63 - 5
	if len(prefix) > most {
		prefix = prefix[:most]
	}
	return prefix + rand.String(5)
}

// wipe removes what a client may not set when it creates.
func wipe(obj api.Object) {
	obj.SetCreationTimestamp(metav1.Time{})
	obj.SetUID("")
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
}

// clearType empties the TypeMeta of a Go struct; objects are stored without.
func clearType(obj api.Object) {
	if _, ok := obj.(interface{ UnstructuredContent() map[string]any }); !ok {
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
}

// matchNamespace gives the object the namespace of the request, or refuses another.
func matchNamespace(t *Target, obj api.Object) error {
	switch want := t.Namespace; {
	case !t.Kind.Namespaced:
		obj.SetNamespace("")
	case obj.GetNamespace() == "":
		obj.SetNamespace(want)
	case obj.GetNamespace() != want:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

func pathSegment(name string, prefix bool) []string {
	if prefix {
		return content.IsPathSegmentPrefix(name)
	}
	return content.IsPathSegmentName(name)
}

const afterAdmission = " after mutating admission happens"

// dedupOwners drops owner references that stand twice, with a warning.
func dedupOwners(t *Target, obj api.Object, when string) {
	refs := obj.GetOwnerReferences()
	if len(refs) < 2 {
		return
	}
	var kept []metav1.OwnerReference
	var double string
	for _, ref := range refs {
		if containsOwner(kept, ref) {
			if double != "" {
				double += ", "
			}
			double += string(ref.UID)
			continue
		}
		kept = append(kept, ref)
	}
	if double == "" {
		return
	}
	obj.SetOwnerReferences(kept)
	if when == "" {
		t.warn(".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: " + double)
		return
	}
	t.warn(".metadata.ownerReferences contains duplicate entries" + when + "; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: " + double)
}

func containsOwner(refs []metav1.OwnerReference, ref metav1.OwnerReference) bool {
	for _, r := range refs {
		if equality.Semantic.DeepEqual(r, ref) {
			return true
		}
	}
	return false
}

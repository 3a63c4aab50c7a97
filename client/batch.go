package client

import (
	"context"

	"coracle.dev/coracle/api"
)

// New is an object that is to be added.
type New struct {
	// Resource is the canonical resource name.
	Resource string
	// Object has a name, and belongs to the Writer from the call on.
	Object api.Object
}

// Batcher is a Writer that can add several objects at once. Not every Writer is one.
type Batcher interface {
	// CreateAll adds all objects in one transaction, or none. Each is admitted and
	// validated as if it came alone. It fails with AlreadyExists if one of them is there already.
	CreateAll(ctx context.Context, objs []New) error
}

package container

import (
	"errors"
	"fmt"
)

var (
	// ErrNotFound: no sandbox or container has this ID.
	ErrNotFound = errors.New("container: not found")
	// ErrExists: the ID is taken.
	ErrExists = errors.New("container: already exists")
	// ErrNotRunning: the container has no process.
	ErrNotRunning = errors.New("container: not running")
	// ErrBusy: something still runs.
	ErrBusy = errors.New("container: busy")
	// ErrLost: the supervising process is gone, and with it the container's streams and exit code.
	ErrLost = errors.New("container: the supervising process is gone")
	// ErrImageNotFound: no image of this name is in the store.
	ErrImageNotFound = errors.New("container: image not found")
	// ErrImageInUse: a container needs the image.
	ErrImageInUse = errors.New("container: image is in use")
)

// StartError says why a process could not be executed, with the cause in the kernel's or
// the runtime's words (`exec: "foo": executable file not found in $PATH`).
type StartError struct {
	// NotFound: there is no such program (a shell would say 127), otherwise 126.
	NotFound bool
	Message  string
}

// Error is the message.
func (e *StartError) Error() string { return e.Message }

// PullErrorKind says which part of a pull failed.
type PullErrorKind string

// The kinds of pull errors.
const (
	PullInvalidName  PullErrorKind = "InvalidImageName"
	PullNotFound     PullErrorKind = "NotFound"
	PullUnauthorized PullErrorKind = "Unauthorized"
	PullUnavailable  PullErrorKind = "RegistryUnavailable"
	PullDamaged      PullErrorKind = "Damaged"
	PullOther        PullErrorKind = "Other"
)

// PullError says why an image could not be pulled.
type PullError struct {
	Ref  string
	Kind PullErrorKind
	Err  error
}

// Error names the reference and the cause.
func (e *PullError) Error() string {
	return fmt.Sprintf("failed to pull and unpack image %q: %v", e.Ref, e.Err)
}

// Unwrap is the cause.
func (e *PullError) Unwrap() error { return e.Err }

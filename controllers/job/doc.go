// Package job runs pods until enough of them have succeeded.
//
// It owns the pods of Jobs, the finalizer batch.kubernetes.io/job-tracking on them, and the
// status of Jobs. It never restarts a pod (the node does that), never creates one for a
// job that is finished, suspended or managed by another controller, and never deletes a job: that is the
// second loop, for jobs with a time to live.
//
// A pod is counted once although it may be deleted at any time: it keeps its finalizer until
// its UID stands in status.uncountedTerminatedPods, and the UID stands there until the finalizer is
// gone; then it moves into the counters (KEP-2307).
package job

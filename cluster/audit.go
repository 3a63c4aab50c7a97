package cluster

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"

	"coracle.dev/coracle/apiserver/audit"
	"coracle.dev/coracle/controllers/serverlease"
	"coracle.dev/coracle/reconcile"
)

// Audit says what is recorded of requests and where to, as the flags --audit-* of upstream's kube-apiserver do.
type Audit struct {
	// PolicyFile is the policy (audit.k8s.io/v1); "" records nothing.
	PolicyFile string
	// LogPath is the file that events are written to, "-" for standard output, "" for none. MaxSize is in megabytes, MaxAge in
	// days; zero values are upstream's defaults.
	LogPath                             string
	LogMaxSize, LogMaxBackup, LogMaxAge int
	LogCompress                         bool
	// LogFormat is json or legacy, LogMode blocking or blocking-strict.
	LogFormat, LogMode string
	// WebhookConfig is a kubeconfig file that names the server to which events are sent, "" for none.
	WebhookConfig string
	// WebhookBatch says how they are gathered.
	WebhookBatch audit.BatchOptions
}

func (a *Audit) complete() error {
	if a.LogFormat == "" {
		a.LogFormat = "json"
	}
	if a.LogMode == "" {
		a.LogMode = "blocking"
	}
	var errs []error
	if a.LogFormat != "json" && a.LogFormat != "legacy" {
		errs = append(errs, fmt.Errorf("audit-log-format: %q is not json or legacy", a.LogFormat))
	}
	if a.LogMode != "blocking" && a.LogMode != "blocking-strict" {
		errs = append(errs, fmt.Errorf("audit-log-mode: %q is not blocking or blocking-strict", a.LogMode))
	}
	for name, n := range map[string]int{"audit-log-maxsize": a.LogMaxSize, "audit-log-maxbackup": a.LogMaxBackup, "audit-log-maxage": a.LogMaxAge} {
		if n < 0 {
			errs = append(errs, fmt.Errorf("%s: %d can't be a negative number", name, n))
		}
	}
	if sinks := a.LogPath != "" || a.WebhookConfig != ""; sinks != (a.PolicyFile != "") {
		errs = append(errs, errors.New("audit-policy-file goes with audit-log-path or audit-webhook-config-file: give both or neither"))
	}
	return errors.Join(errs...)
}

// openAudit makes the recorder that the configuration asks for, nil if it asks for none.
func (c *Cluster) openAudit() (*audit.Recorder, error) {
	a := &c.cfg.Audit
	if a.PolicyFile == "" {
		return nil, nil
	}
	policy, err := audit.LoadPolicy(a.PolicyFile)
	if err != nil {
		return nil, err
	}
	var sinks []audit.Sink
	if a.LogPath != "" {
		log, err := audit.OpenLog(audit.LogOptions{
			Path: a.LogPath, MaxSize: int64(a.LogMaxSize) << 20, MaxBackups: a.LogMaxBackup, MaxAge: time.Duration(a.LogMaxAge) * 24 * time.Hour,
			Compress: a.LogCompress, Legacy: a.LogFormat == "legacy", Strict: a.LogMode == "blocking-strict",
		})
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, log)
	}
	if a.WebhookConfig != "" {
		hook, err := audit.OpenWebhook(a.WebhookConfig, a.WebhookBatch, c.log)
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, hook)
	}
	return audit.New(policy, c.log, sinks...), nil
}

// serverLease is the loop that keeps the lease of this API server.
func (c *Cluster) serverLease() reconcile.Loop {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return serverlease.Loop(strings.ToLower(host), string(uuid.NewUUID()))
}

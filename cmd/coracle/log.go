package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"coracle.dev/coracle/cluster"
)

// openLog opens the log of an instance, <data-dir>/coracle.log. The one before is kept
// as coracle.log.1.
func openLog(cfg cluster.Config) (*slog.Logger, func(), error) {
	if err := os.MkdirAll(cfg.DataDir, 0o711); err != nil {
		return nil, nil, fmt.Errorf("data directory: %w: choose another with --data-dir", err)
	}
	path := filepath.Join(cfg.DataDir, "coracle.log")
	_ = os.Rename(path, path+".1")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("log: %w", err)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return nil, nil, err
	}
	return slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: level})), func() { f.Close() }, nil
}

// routeLibraries sends what libraries log through loggers of the whole process (klog, logrus, log, slog) to the log of
// the instance, so that nothing of it gets onto the terminal. It is for processes that run a cluster; `coracle kubectl` keeps
// klog as it is, because -v is its user's.
func routeLibraries(log *slog.Logger) {
	slog.SetDefault(log) // and with it package log
	klog.SetSlogLogger(log.With("library", "klog"))
	logrus.SetOutput(io.Discard)
	logrus.AddHook(logrusHook{log.With("library", "logrus")})
}

// logrusHook writes entries of logrus to a logger.
type logrusHook struct{ log *slog.Logger }

// Levels implements logrus.Hook.
func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (h logrusHook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	case logrus.WarnLevel:
		level = slog.LevelWarn
	case logrus.InfoLevel:
		level = slog.LevelInfo
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	h.log.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}

package plugins

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
)

// Serve serves one of the node's own sockets, for plugins and others on the machine, until ctx is done. If there can be no such socket (its
// path is too long, as it may be where the data directory is deep down), that is logged, and nobody served: a node works without.
func Serve(ctx context.Context, socket string, server *grpc.Server, log *slog.Logger) {
	l, err := listen(ctx, socket)
	if err != nil {
		if ctx.Err() == nil {
			log.Warn("socket cannot be served", "socket", socket, "err", err)
		}
		<-ctx.Done()
		return
	}
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		log.Warn("socket is served no more", "socket", socket, "err", err)
	}
	<-ctx.Done()
}

func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return (&net.ListenConfig{}).Listen(ctx, "unix", socket)
}

// Command keepserver is a web server of the usual kind for scenarios: it keeps connections, answers "ok", and when it is told to end
// it finishes what is under way and closes idle connections, as net/http does. It listens on port 8080.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	s := &http.Server{Addr: ":8080", ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})}
	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	done := make(chan error, 1)
	go func() {
		<-told.Done()
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	err := s.ListenAndServe()
	if errors.Is(err, http.ErrServerClosed) {
		err = <-done
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "keepserver:", err)
		os.Exit(1)
	}
}

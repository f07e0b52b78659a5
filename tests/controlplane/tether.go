package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
)

// keepThread locks the calling goroutine to its thread for the rest of the program.
//
// Linux sends Pdeathsig to a child when the thread that started it ends, not the process (prctl(2), PR_SET_PDEATHSIG).
// Without the lock, Go could end that thread and so kill the children. The goroutine is the main one, which runs as long
// as the program.
func keepThread() { runtime.LockOSThread() }

// untilStdinCloses returns when all writers have closed standard input. It ignores what they write.
func untilStdinCloses() { _, _ = io.Copy(io.Discard, os.Stdin) }

// tetherCommand runs a program that must not outlive its caller.
func tetherCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tether -- CMD ARGS...",
		Short: "Run CMD, kill it when standard input closes, end with its exit code",
		Long: "Run CMD with this program's stdout and stderr and an empty standard input. CMD gets SIGTERM and SIGINT, and is\n" +
			"killed when tether's standard input closes or tether is killed. The exit code is that of CMD, or 128 + N if\n" +
			"signal N ended CMD.",
		Args:          cobra.MinimumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(_ *cobra.Command, args []string) error {
			code, err := tether(args)
			if err != nil {
				return err
			}
			os.Exit(code) // cli.Run knows only 0 and 1
			return nil
		},
	}
}

func tether(args []string) (int, error) {
	keepThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM) // before the start, so that no signal is lost

	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// In its own process group, the child gets the Ctrl-C of a terminal once, from tether.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		untilStdinCloses()
		_ = cmd.Process.Kill()
	}()
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()

	var ended *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
		return 0, fmt.Errorf("%s: %w", args[0], err)
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

package auditlog_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sallyport-pki/sallyport/auditlog"
)

// A whole audit: the key and the checkpoint of the last visit are the auditor's own, the directory is a copy of the log.
func ExampleVerifyDir() {
	key, err := os.ReadFile("verifier")
	if err != nil {
		fmt.Println("bring the key you wrote down at your first visit")
		return
	}
	older, err := os.ReadFile("checkpoint-of-last-visit")
	if err != nil {
		fmt.Println("without it, a rewritten log cannot be told from the true one")
		return
	}
	report, err := auditlog.VerifyDir(context.Background(), "copy-of-the-log", auditlog.Options{Key: string(key), Older: older})
	var v *auditlog.Violation
	switch {
	case errors.As(err, &v):
		fmt.Println("the log was tampered with:", v)
	case err != nil:
		fmt.Println("the check could not be done:", err)
	default:
		fmt.Printf("%d records are what was signed; keep this checkpoint:\n%s", report.Records, report.Checkpoint.Note)
	}
	// Output: bring the key you wrote down at your first visit
}

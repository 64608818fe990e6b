package command

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// reasonFlag takes a reason of RFC 5280, as here or as the RFC writes it.
type reasonFlag struct {
	v   typev1.RevocationReason
	set bool
}

const unspecified = "unspecified"

func (f *reasonFlag) Words() []string {
	return append([]string{unspecified}, output.Words(f.v.Descriptor())...)
}

func (f *reasonFlag) String() string {
	if f.set && f.v == 0 {
		return unspecified
	}
	return output.Word(f.v)
}

func (f *reasonFlag) Set(s string) error {
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s)) }
	for _, word := range f.Words() {
		if plain(word) != plain(s) {
			continue
		}
		f.v, f.set = 0, true
		if word == unspecified {
			return nil
		}
		n, err := output.ParseWord(f.v.Descriptor(), word)
		f.v = typev1.RevocationReason(n)
		return err
	}
	return fmt.Errorf("%q is none: want one of %s", s, strings.Join(f.Words(), ", "))
}

func (f *reasonFlag) Type() string { return "reason" }

func (a *app) certificateCommand() *cobra.Command {
	certificates, _ := kind.Find(kind.All(), "certificate")
	list := a.getKindCommand(certificates)
	list.Use, list.Aliases, list.Short = "list [FINGERPRINT...]", []string{"ls"}, "Show certificates"
	cmd := parent("certificate", "Show and revoke certificates", "", list, a.revokeCommand(certificates))
	cmd.Aliases = certificates.Aliases
	return cmd
}

func (a *app) revokeCommand(certificates *kind.Kind) *cobra.Command {
	var (
		reason  reasonFlag
		comment string
		yes     bool
	)
	cmd := &cobra.Command{
		Use:   "revoke FINGERPRINT --reason REASON",
		Short: "Take a certificate of an internal authority back, for ever",
		Long: `Take a certificate of an internal authority back, for ever. Within seconds it is on
the authority's CRL, and where it is deployed another one takes its place. The
fingerprint is the SHA-256 of the certificate; its first 8 digits or more will do
where the inventory knows it. docs/revocation.md says when to use which reason.`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !reason.set {
				return exit.Errorf(exit.Usage, "give --reason: one of %s", strings.Join(reason.Words(), ", "))
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			fingerprint, what, err := named(cmd.Context(), c, certificates.Bare(args[0]), yes)
			if err != nil {
				return err
			}
			if !yes {
				ok, err := a.asked(fmt.Sprintf("Revoke certificate %s as %s? (it cannot be undone)", what, reason.String()))
				if err != nil {
					return err
				}
				if !ok {
					return exit.Errorf(exit.Interrupted, "nothing was revoked")
				}
			}
			r, err := c.Issuer().RevokeCertificate(cmd.Context(), &issuerv1.RevokeCertificateRequest{
				Fingerprint: fingerprint, Reason: reason.v, Comment: comment, RequestId: requestID(),
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.env.Out, "certificate/%s revoked %s\n", r.GetRevocation().GetFingerprint(), r.GetRevocation().GetRevoked().AsTime().UTC().Format(time.RFC3339))
			return err
		},
		ValidArgsFunction: a.completeOne(certificates),
	}
	cmd.Flags().Var(&reason, "reason", "why, for those who read the CRL: "+strings.Join(reason.Words(), ", "))
	cmd.Flags().StringVar(&comment, "comment", "", "why in words, for the audit record")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	completeWords(cmd)
	return cmd
}

const fingerprintDigits = 64

// named finds the whole fingerprint, written as openssl does or not, and what a person should see before it is too late. Nothing
// is asked about a whole one that nobody will look at.
func named(ctx context.Context, c *connect.Client, s string, blind bool) (fingerprint, what string, err error) {
	s = strings.ToLower(strings.ReplaceAll(s, ":", ""))
	if blind && len(s) == fingerprintDigits {
		return s, "", nil
	}
	r, err := c.Inventory().GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Fingerprint: s})
	if err != nil {
		if len(s) == fingerprintDigits {
			return s, output.Clean(s) + ", which the inventory cannot show,", nil
		}
		return "", "", err
	}
	m := r.GetCertificate()
	what = kind.Short(m.GetCertificate().GetFingerprint()) + " of " + kind.Names(m.GetCertificate().GetNames(), 3)
	if hosts := kind.CertificateHosts(m); len(hosts) > 0 {
		what += " on " + strings.Join(hosts[:min(len(hosts), 3)], ", ")
	}
	return m.GetCertificate().GetFingerprint(), output.Clean(what), nil
}

func (a *app) authorityCommand() *cobra.Command {
	authorities, _ := kind.Find(kind.All(), "authority")
	list := a.getKindCommand(authorities)
	list.Use, list.Aliases, list.Short = "list [NAME...]", []string{"ls"}, "Show authorities"
	return parent("authority", "Show authorities and their CRLs", "", list, a.crlCommand(authorities))
}

// crlFormat is what -o takes here.
type crlFormat string

func (f *crlFormat) Words() []string { return []string{"text", "pem", "der"} }
func (f *crlFormat) String() string  { return string(*f) }
func (f *crlFormat) Type() string    { return "format" }
func (f *crlFormat) Set(s string) error {
	if !slices.Contains(f.Words(), s) {
		return fmt.Errorf("unknown format %q: want one of %s", s, strings.Join(f.Words(), ", "))
	}
	*f = crlFormat(s)
	return nil
}

func (a *app) crlCommand(authorities *kind.Kind) *cobra.Command {
	format := crlFormat("text")
	var root bool
	cmd := &cobra.Command{
		Use:   "crl NAME",
		Short: "Write the newest CRLs of an internal authority",
		Long: `Write the newest certificate revocation lists of an internal authority: the one its
issuing CA has signed, and the one its root has. PEM has both, as nginx (ssl_crl) and
haproxy (crl-file) want them; DER has one, the issuing CA's if --root is not given.`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format == "der" && output.Terminal(a.env.Out) {
				return exit.Errorf(exit.Usage, "DER is not for a terminal: redirect it to a file")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := c.Issuer().GetRevocationList(cmd.Context(), &issuerv1.GetRevocationListRequest{Authority: authorities.Bare(args[0])})
			if err != nil {
				return err
			}
			lists := slices.DeleteFunc(r.GetLists(), func(l *issuerv1.RevocationList) bool { return l.GetRoot() != root && (root || format == "der") })
			if len(lists) == 0 {
				return errors.New("the list is not made yet: try again in some seconds")
			}
			for _, l := range lists {
				if err := writeCRL(a.env.Out, l, format); err != nil {
					return err
				}
			}
			return nil
		},
		ValidArgsFunction: a.completeOne(authorities),
	}
	cmd.Flags().VarP(&format, "output", "o", "text, pem or der")
	cmd.Flags().BoolVar(&root, "root", false, "the root's list alone")
	completeWords(cmd)
	return cmd
}

func writeCRL(w io.Writer, l *issuerv1.RevocationList, format crlFormat) error {
	switch format {
	case "der":
		_, err := w.Write(l.GetDer())
		return err
	case "pem":
		return pem.Encode(w, &pem.Block{Type: "X509 CRL", Bytes: l.GetDer()})
	}
	list, err := x509.ParseRevocationList(l.GetDer())
	if err != nil {
		return fmt.Errorf("reading the CRL: %w", err)
	}
	fmt.Fprintf(w, "Issuer:       %s\nKey id:       %s\nNumber:       %s\nMade:         %s\nNext by:      %s\nCertificates: %d\n",
		output.Clean(list.Issuer.String()), l.GetKeyId(), list.Number, list.ThisUpdate.UTC().Format(time.RFC3339), list.NextUpdate.UTC().Format(time.RFC3339), len(list.RevokedCertificateEntries))
	for _, e := range list.RevokedCertificateEntries {
		reason := reasonFlag{v: typev1.RevocationReason(e.ReasonCode), set: true} //nolint:gosec // RFC 5280: at most 10
		fmt.Fprintf(w, "  %s  %s  %s\n", e.SerialNumber.Text(16), e.RevocationTime.UTC().Format(time.RFC3339), reason.String())
	}
	_, err = fmt.Fprintln(w)
	return err
}

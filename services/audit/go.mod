module github.com/sallyport-pki/sallyport/services/audit

go 1.26

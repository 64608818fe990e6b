module github.com/sallyport-pki/sallyport/services/issuer

go 1.26

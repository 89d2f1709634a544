"""Certificates: what the algebra claims, proved over exact symbols at tiny sizes."""

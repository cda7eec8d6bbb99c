"""Authors and their books."""

from django.contrib.postgres.fields import ArrayField
from django.db import models


class Author(models.Model):
    name = models.CharField(max_length=100, unique=True)
    born = models.DateField(null=True)


class Book(models.Model):
    author = models.ForeignKey(Author, on_delete=models.CASCADE, related_name="books")
    title = models.CharField(max_length=200)
    published = models.DateTimeField(db_index=True)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    about = models.JSONField(default=dict)
    tags = ArrayField(models.CharField(max_length=20), default=list)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(price__gte=0), name="no_negative_price")]
        indexes = [models.Index(fields=["title"], name="book_title")]

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


def add_an_author(apps, schema_editor):
    author = apps.get_model("library", "Author").objects.create(name="Charles")
    author.delete()


class Migration(migrations.Migration):
    # An index that is built while others write cannot be built inside a transaction.
    atomic = False

    dependencies = [("library", "0001_initial")]

    operations = [
        migrations.RunPython(add_an_author, migrations.RunPython.noop, atomic=True),
        AddIndexConcurrently("book", models.Index(fields=["title"], name="book_title")),
    ]
